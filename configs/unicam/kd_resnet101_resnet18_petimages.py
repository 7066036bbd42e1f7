# Experiment 2: the student, taught by ResNet-101 itself.
_base_ = ['resnet18_petimages.py', '../_base_/explain/what_was_distilled.py']
work_dir = f'{_base_.runs}/kd_resnet101_resnet18_petimages'
teacher = dict(
    model='mmkdx::unicam/resnet101_petimages.py',
    checkpoint=f'{_base_.runs}/resnet101_petimages/epoch_20.pth',
)
model = dict(
    _delete_=True,
    type='Distiller',
    student={{_base_.model}},
    teacher=teacher,
    student_weight=0.7,
    terms=dict(kd=dict(type='KLDivLoss', at='logits', tau=20, weight=0.3)),
)
base = dict(
    model='mmkdx::unicam/resnet18_petimages.py',
    checkpoint=f'{_base_.runs}/resnet18_petimages/epoch_20.pth',
)
custom_hooks = [dict(_base_.what_was_distilled, base=base)]
train_cfg = dict(max_epochs=25)
