# Confidence penalty (Pereyra et al., 2017).
_base_ = ['ce_resnet8_parts900.py']
model = dict(
    _delete_=True,
    type='Distiller',
    student={{_base_.model}},
    input_size=20,
    terms=dict(penalty=dict(type='ConfidencePenaltyLoss', at='logits', weight=0.1)),
)
