# The student alone: half as wide as its teacher, explained beside it.
_base_ = ['resnet18-tiny_parts.py', '../_base_/teachers/resnet18-tiny_parts.py']
model = dict(backbone=dict(stem_channels=4, base_channels=4), head=dict(in_channels=32))
custom_hooks = [
    dict(type='EpochSeedHook'),
    dict(
        type='ExplainHook',
        explainer=dict(type='CAM'),
        target='label',
        num_samples=300,
        teacher={{_base_.teacher}},
        metrics=[
            dict(type='MapAgreement'),
            dict(type='PointingGame', labels='object_labels', name='object'),
            dict(type='PointingGame', labels='deciding_labels', name='deciding'),
            dict(type='MapSegmentation', labels='object_labels'),
            # Does the score fall without a part, for student and teacher alike?
            dict(type='PartIntervention'),
        ],
    ),
]
