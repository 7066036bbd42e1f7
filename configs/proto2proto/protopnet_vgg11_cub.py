_base_ = ['protopnet_vgg19_cub.py']
model = dict(
    backbone=dict(
        depth=11,
        init_cfg=dict(
            checkpoint='https://download.openmmlab.com/mmclassification/v0/'
            'vgg/vgg11_batch256_imagenet_20210208-4271cd6c.pth',
        ),
    ),
)
