# ProtoPNet (Chen et al., NeurIPS 2019) on CUB-200-2011, cropped.
_base_ = [
    '../_base_/models/protopnet_vgg19.py',
    '../_base_/datasets/cub_cropped_bs80.py',
    '../_base_/schedules/protopnet_31e.py',
    '../_base_/default_runtime.py',
]
model = dict(
    backbone=dict(
        init_cfg=dict(
            type='Pretrained',
            checkpoint='https://download.openmmlab.com/mmclassification/v0/'
            'vgg/vgg19_batch256_imagenet_20210208-e6920e4a.pth',
            prefix='backbone.',
        )
    )
)
custom_hooks = {{_base_.prototype_hooks}}
