_base_ = [
    '../cifar/wrn_40_1_cifar100.py',
    '../_base_/teachers/wrn_40_2_cifar100.py',
    '../_base_/explain/cam_cifar100.py',
]
model = dict(
    _delete_=True,
    type='Distiller',
    student={{_base_.model}},
    teacher={{_base_.teacher}},
    input_size=32,
    terms=dict(expkd=dict(type='ExpKDLoss', at='cam', tau=1, weight=100.0 * 256 * 10)),
)
train_dataloader = dict(batch_size=256)
optim_wrapper = dict(optimizer=dict(lr=0.1))
