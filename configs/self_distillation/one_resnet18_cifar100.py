# On-the-fly native ensemble (Lan et al., NeurIPS 2018) of three branches, with the ramp of the authors'
# code.
_base_ = ['ce_resnet18_cifar100.py']
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
            ramp=dict(type='sigmoid', end=81),
            weight=1.0,
        )
    ),
)
