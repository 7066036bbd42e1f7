_base_ = ['protopnet_vgg19_cub.py']
model = dict(
    backbone=dict(
        type='ResNet',
        depth=34,
        init_cfg=dict(
            checkpoint='https://download.openmmlab.com/mmclassification/v0/'
            'resnet/resnet34_8xb32_in1k_20210831-f257d4e6.pth',
        ),
    ),
    head=dict(in_channels=512),
)
