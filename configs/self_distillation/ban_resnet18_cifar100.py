# Born-again network (Furlanello et al., ICML 2018), the first generation, without labels.
_base_ = ['ce_resnet18_cifar100.py', '../_base_/teachers/ce_resnet18_cifar100.py']
model = dict(
    _delete_=True,
    type='Distiller',
    student={{_base_.model}},
    input_size=32,
    teacher={{_base_.teacher}},
    student_weight=0.0,
    terms=dict(ban=dict(type='KLDivLoss', at='logits', tau=1, weight=1.0)),
)
