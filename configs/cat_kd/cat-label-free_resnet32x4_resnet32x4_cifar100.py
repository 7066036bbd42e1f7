# CAT: class maps alone; labels are never read. The student is a fresh copy of the teacher.
_base_ = [
    '../cifar/resnet32x4_cifar100.py',
    '../_base_/teachers/resnet32x4_cifar100.py',
    '../_base_/explain/cam_cifar100.py',
]
model = dict(
    _delete_=True,
    type='Distiller',
    student={{_base_.model}},
    teacher={{_base_.teacher}},
    student_weight=0.0,
    input_size=32,
    terms=dict(cat=dict(type='CATLoss', at='cam', resolution=2, normalize=True, weight=50.0)),
)
