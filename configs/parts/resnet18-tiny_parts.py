# A narrow ResNet-18 whose last feature map has 8 x 8 positions, trained without a bias.
_base_ = [
    '../_base_/models/resnet18-tiny_digits.py',
    '../_base_/datasets/parts.py',
    '../_base_/schedules/parts_8e.py',
    '../_base_/digits_runtime.py',
]
model = dict(
    backbone=dict(stem_channels=8, base_channels=8, strides=(2, 2, 2, 1)),
    head=dict(num_classes=9, in_channels=64),
)
# At every validation: do the maps lie on the bird, and on the parts that decide?
custom_hooks = [
    dict(type='EpochSeedHook'),
    dict(
        type='ExplainHook',
        explainer=dict(type='CAM'),
        target='label',
        num_samples=300,
        metrics=[
            dict(type='PointingGame', labels='object_labels', name='object'),
            dict(type='PointingGame', labels='deciding_labels', name='deciding'),
            dict(type='MapSegmentation', labels='object_labels'),
            dict(type='PartIntervention'),
        ],
    ),
]
