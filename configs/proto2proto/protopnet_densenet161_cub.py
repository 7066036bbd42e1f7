_base_ = ['protopnet_vgg19_cub.py']
model = dict(
    backbone=dict(
        _delete_=True,
        type='DenseNet',
        arch='161',
        init_cfg=dict(
            type='Pretrained',
            checkpoint='https://download.openmmlab.com/mmclassification/v0/'
            'densenet/densenet161_4xb256_in1k_20220426-ee6a80a9.pth',
            prefix='backbone.',
        ),
    ),
    head=dict(in_channels=2208),
)
