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
    terms=dict(cat=dict(type='CATLoss', at='cam', resolution=2, normalize=False, weight=1.5)),
)
