# Knowledge distillation (Hinton et al., 2015).
_base_ = ['resnet18-micro_parts.py']
model = dict(
    _delete_=True,
    type='Distiller',
    student={{_base_.model}},
    teacher=dict(
        model='configs/parts/resnet18-tiny_parts.py',
        checkpoint='work_dirs/resnet18-tiny_parts/epoch_8.pth',
    ),
    input_size=64,
    terms=dict(kd=dict(type='KLDivLoss', at='logits', tau=4, weight=1.0)),
)
