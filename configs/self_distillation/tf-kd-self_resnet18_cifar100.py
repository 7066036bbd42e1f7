# Tf-KD by itself (Yuan et al., CVPR 2020): the teacher is the student, trained before. alpha 0.95, and
# a multiplier of 50 for 100 classes.
_base_ = ['ce_resnet18_cifar100.py', '../_base_/teachers/ce_resnet18_cifar100.py']
model = dict(
    _delete_=True,
    type='Distiller',
    student={{_base_.model}},
    input_size=32,
    teacher={{_base_.teacher}},
    student_weight=0.05,
    terms=dict(tfkd=dict(type='KLDivLoss', at='logits', tau=6, weight=0.475)),
)
