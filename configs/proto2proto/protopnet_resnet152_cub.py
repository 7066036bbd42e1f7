_base_ = ['protopnet_vgg19_cub.py']
model = dict(
    backbone=dict(
        _delete_=True,
        type='ResNet',
        depth=152,
        init_cfg=dict(
            type='Pretrained',
            checkpoint='https://download.openmmlab.com/mmclassification/v0/'
            'resnet/resnet152_8xb32_in1k_20210901-4d7582fa.pth',
            prefix='backbone.',
        ),
    ),
    head=dict(in_channels=2048),
)
