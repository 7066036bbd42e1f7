# Be your own teacher (Zhang et al., ICCV 2019).
_base_ = ['ce_resnet18-tiny_digits100.py']
model = dict(
    _delete_=True,
    type='Distiller',
    student={{_base_.model}},
    input_size=32,
    student_weight=0.9,
    terms=dict(
        byot=dict(
            type='BYOTLoss',
            at=['backbone.layer1', 'backbone.layer2', 'backbone.layer3', 'features', 'logits'],
            alpha=0.1,
            weight=1.0,
        )
    ),
)
