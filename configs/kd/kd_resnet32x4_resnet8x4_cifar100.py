# Knowledge distillation (Hinton et al., 2015).
_base_ = [
    '../cifar/resnet8x4_cifar100.py',
    '../_base_/teachers/resnet32x4_cifar100.py',
    '../_base_/explain/cam_cifar100.py',
]
model = dict(
    _delete_=True,
    type='Distiller',
    student={{_base_.model}},
    teacher={{_base_.teacher}},
    student_weight=0.1,
    input_size=32,
    terms=dict(kd=dict(type='KLDivLoss', at='logits', tau=4, weight=0.9)),
)
