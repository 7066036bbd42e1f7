_base_ = [
    '../cifar/vgg8_cifar100.py',
    '../_base_/teachers/vgg13_cifar100.py',
    '../_base_/explain/cam_cifar100.py',
]
model = dict(
    _delete_=True,
    type='Distiller',
    student={{_base_.model}},
    teacher={{_base_.teacher}},
    input_size=32,
    terms=dict(cat=dict(type='CATLoss', at='cam', resolution=2, normalize=False, weight=4.5)),
)
