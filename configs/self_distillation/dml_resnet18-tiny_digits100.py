# Deep mutual learning (Zhang et al., CVPR 2018) with one peer of the student's kind.
_base_ = ['ce_resnet18-tiny_digits100.py']
model = dict(
    _delete_=True,
    type='Distiller',
    student={{_base_.model}},
    input_size=32,
    terms=dict(dml=dict(type='DMLLoss', at='logits', peers=[{{_base_.model}}], weight=1.0)),
)
