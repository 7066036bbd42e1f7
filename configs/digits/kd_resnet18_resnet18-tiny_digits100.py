# Knowledge distillation (Hinton et al., 2015).
_base_ = ['resnet18-tiny_digits100.py']
model = dict(
    _delete_=True,
    type='Distiller',
    student={{_base_.model}},
    teacher=dict(
        model='configs/digits/resnet18_digits.py',
        checkpoint='work_dirs/resnet18_digits/epoch_12.pth',
    ),
    input_size=32,
    terms=dict(kd=dict(type='KLDivLoss', at='logits', tau=4, weight=1.0)),
)
