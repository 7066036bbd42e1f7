_base_ = ['protopnet_vgg19_cub.py']
model = dict(
    backbone=dict(
        _delete_=True,
        type='VGG',
        depth=11,
        init_cfg=dict(
            type='Pretrained',
            checkpoint='https://download.openmmlab.com/mmclassification/v0/'
            'vgg/vgg11_batch256_imagenet_20210208-4271cd6c.pth',
            prefix='backbone.',
        ),
    ),
    head=dict(in_channels=512),
)
