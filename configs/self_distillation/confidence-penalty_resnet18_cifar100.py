# Confidence penalty (Pereyra et al., 2017).
_base_ = ['ce_resnet18_cifar100.py']
model = dict(
    _delete_=True,
    type='Distiller',
    student={{_base_.model}},
    input_size=32,
    terms=dict(penalty=dict(type='ConfidencePenaltyLoss', at='logits', weight=0.1)),
)
