# Online label smoothing (Zhang et al., TIP 2021).
_base_ = ['ce_resnet8_parts900.py']
model = dict(
    _delete_=True,
    type='Distiller',
    student={{_base_.model}},
    input_size=20,
    student_weight=0.5,
    terms=dict(ols=dict(type='OnlineLabelSmoothingLoss', at='logits', weight=0.5)),
)
