# The teacher: ProtoPNet (Chen et al., NeurIPS 2019) on the first three stages of a trained classifier,
# whose positions see less of the image than those of the fourth.
_base_ = [
    '../_base_/datasets/parts.py',
    '../_base_/schedules/proto2proto_parts.py',
    '../_base_/explain/prototype_scores_parts.py',
    '../_base_/digits_runtime.py',
]
model = dict(
    type='ImageClassifier',
    backbone=dict(
        type='ResNet_CIFAR',
        depth=18,
        stem_channels=8,
        base_channels=8,
        num_stages=3,
        strides=(2, 2, 2),
        dilations=(1, 1, 1),
        out_indices=(2,),
        init_cfg=dict(
            type='Pretrained',
            checkpoint='work_dirs/resnet18-tiny_parts/epoch_8.pth',
            prefix='backbone.',
        ),
    ),
    head=dict(
        type='ProtoPNetHead',
        num_classes=9,
        in_channels=32,
        prototypes_per_class=10,
        prototype_channels=32,
    ),
)
custom_hooks = [*_base_.custom_hooks, *_base_.prototype_hooks, _base_.prototype_scores]
