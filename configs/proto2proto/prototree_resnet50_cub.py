# ProtoTree (Nauta et al., CVPR 2021) of depth 9 on CUB-200-2011. The public configuration augments
# online; here the images are augmented beforehand, as ProtoPNet's are.
_base_ = [
    '../_base_/datasets/cub_cropped_bs80.py',
    '../_base_/schedules/prototree_100e.py',
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
        type='ProtoTreeHead', num_classes=200, in_channels=2048, depth=9, prototype_channels=256
    ),
)
train_dataloader = dict(batch_size=64)
custom_hooks = {{_base_.prototype_hooks}}
