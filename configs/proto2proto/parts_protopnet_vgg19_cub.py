# What the prototypes of protopnet_vgg19_cub.py stand for, by the annotated parts of CUB-200-2011: tests
# a checkpoint on the images of the public archive, cropped alike.
_base_ = [
    '../_base_/models/protopnet_vgg19.py',
    '../_base_/datasets/cub_parts.py',
    '../_base_/explain/prototype_scores.py',
    '../_base_/default_runtime.py',
]
# Left and right eyes, legs and wings count as one part each
custom_hooks = [
    dict(
        _base_.prototype_scores,
        metrics=[
            dict(
                type='PrototypeParts',
                parts=[0, 1, 2, 3, 4, 5, [6, 10], [7, 11], [8, 12], 9, 13, 14],
            )
        ],
    )
]
