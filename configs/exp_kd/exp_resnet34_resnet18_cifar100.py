_base_ = ['../cifar/resnet18_cifar100.py', '../_base_/explain/cam_cifar100.py']
model = dict(
    _delete_=True,
    type='Distiller',
    student={{_base_.model}},
    teacher=dict(
        model='mmkdx::cifar/resnet34_cifar100.py',
        checkpoint='work_dirs/resnet34_cifar100/epoch_240.pth',
    ),
    input_size=32,
    terms=dict(expkd=dict(type='ExpKDLoss', at='cam', tau=2, weight=100.0 * 64 * 2000)),
)
