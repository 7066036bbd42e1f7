# ProtoPNet on Stanford Cars with the settings that Proto2Proto published.
_base_ = [
    '../_base_/datasets/cars_bs128.py',
    '../_base_/schedules/proto2proto_32e.py',
    '../_base_/default_runtime.py',
]
model = dict(
    type='ImageClassifier',
    backbone=dict(
        type='ResNet',
        depth=50,
        init_cfg=dict(
            type='Pretrained',
            checkpoint='https://download.openmmlab.com/mmclassification/v0/'
            'resnet/resnet50_8xb32_in1k_20210831-ea4938fc.pth',
            prefix='backbone.',
        ),
    ),
    head=dict(
        type='ProtoPNetHead',
        num_classes=196,
        in_channels=2048,
        prototypes_per_class=10,
        prototype_channels=256,
        cluster_weight=1.0,
    ),
)
custom_hooks = {{_base_.prototype_hooks}}
