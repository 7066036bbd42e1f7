_base_ = ['../cifar/resnet20_cifar100.py', '../_base_/explain/cam_cifar100.py']
model = dict(
    _delete_=True,
    type='Distiller',
    student={{_base_.model}},
    teacher=dict(
        model='mmkdx::cifar/shufflenetv1_cifar100.py',
        checkpoint='work_dirs/shufflenetv1_cifar100/epoch_240.pth',
    ),
    input_size=32,
    terms=dict(expkd=dict(type='ExpKDLoss', at='cam', tau=1, weight=100.0 * 64 * 1)),
)
