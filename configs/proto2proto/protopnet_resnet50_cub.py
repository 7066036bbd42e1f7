# The teacher of ResNets, with prototypes of 256 channels.
_base_ = ['protopnet_vgg19_cub.py']
model = dict(
    backbone=dict(
        type='ResNet',
        depth=50,
        init_cfg=dict(
            checkpoint='https://download.openmmlab.com/mmclassification/v0/'
            'resnet/resnet50_8xb32_in1k_20210831-ea4938fc.pth',
        ),
    ),
    head=dict(in_channels=2048, prototype_channels=256),
)
