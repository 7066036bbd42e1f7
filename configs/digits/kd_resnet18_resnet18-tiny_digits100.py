# Knowledge distillation (Hinton et al., 2015).
_base_ = ['resnet18-tiny_digits100.py', '../_base_/teachers/resnet18_digits.py']
model = dict(
    _delete_=True,
    type='Distiller',
    student={{_base_.model}},
    teacher={{_base_.teacher}},
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
