# On-the-fly native ensemble (Lan et al., NeurIPS 2018) of three branches.
_base_ = ['ce_resnet18-tiny_digits100.py']
model = dict(
    _delete_=True,
    type='Distiller',
    student={{_base_.model}},
    input_size=32,
    terms=dict(
        one=dict(
            type='ONELoss',
            at=['backbone.layer4:in', 'logits'],
            branch='backbone.layer4',
            weight=1.0,
        )
    ),
)
