# The student alone, explained beside the teacher that it was not taught by.
_base_ = ['resnet18-tiny_digits100.py', '../_base_/teachers/resnet18_digits.py']
custom_hooks = [
    dict(type='EpochSeedHook'),
    dict(
        type='ExplainHook',
        explainer=dict(type='CAM'),
        num_samples=100,
        teacher={{_base_.teacher}},
        metrics=[
            dict(type='MapAgreement'),
            dict(type='DeletionInsertion', steps=8, cross=False),
            dict(type='MapComplexity'),
        ],
    ),
]
