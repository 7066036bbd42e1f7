_base_ = ['protopnet_vgg19_cub.py']
model = dict(
    backbone=dict(
        type='ResNet',
        depth=152,
        init_cfg=dict(
            checkpoint='https://download.openmmlab.com/mmclassification/v0/'
            'resnet/resnet152_8xb32_in1k_20210901-4d7582fa.pth',
        ),
    ),
    head=dict(in_channels=2048),
)
