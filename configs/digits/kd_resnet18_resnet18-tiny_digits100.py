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
# At every validation: does the student look where the teacher looks?
custom_hooks = [
    dict(type='EpochSeedHook'),
    dict(
        type='ExplainHook',
        explainer=dict(type='CAM'),
        num_samples=100,
        metrics=[
            dict(type='MapAgreement'),
            dict(type='DeletionInsertion', steps=8, cross=False),
            dict(type='MapComplexity'),
        ],
    ),
]
