# Knowledge distillation (Hinton et al., 2015) from a convolutional network to a transformer.
_base_ = ['vit-micro_digits100.py', '../_base_/teachers/resnet18_digits.py']
model = dict(
    _delete_=True,
    type='Distiller',
    student={{_base_.model}},
    teacher={{_base_.teacher}},
    input_size=32,
    terms=dict(kd=dict(type='KLDivLoss', at='logits', tau=4, weight=1.0)),
)
