# What the prototypes of protopnet_vgg19_cub.py stand for, by the annotated parts of CUB-200-2011: tests
# a checkpoint on the images of the public archive, cropped alike.
_base_ = ['../_base_/datasets/cub_parts.py', '../_base_/default_runtime.py']
model = dict(
    type='ImageClassifier',
    backbone=dict(type='VGG', depth=19),
    head=dict(
        type='ProtoPNetHead',
        num_classes=200,
        in_channels=512,
        prototypes_per_class=10,
        prototype_channels=128,
    ),
)
custom_hooks = [
    dict(
        type='ExplainHook',
        explainer=dict(type='PrototypeMap'),
        target='label',
        num_samples=None,
        # Left and right eyes, legs and wings count as one part each
        metrics=[
            dict(
                type='PrototypeParts',
                parts=[0, 1, 2, 3, 4, 5, [6, 10], [7, 11], [8, 12], 9, 13, 14],
            )
        ],
    )
]
