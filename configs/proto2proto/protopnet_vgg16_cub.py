_base_ = ['protopnet_vgg19_cub.py']
model = dict(
    backbone=dict(
        depth=16,
        init_cfg=dict(
            checkpoint='https://download.openmmlab.com/mmclassification/v0/'
            'vgg/vgg16_batch256_imagenet_20210208-db26f1a5.pth',
        ),
    ),
)
