# ProtoPNet (Chen et al., NeurIPS 2019) on CUB-200-2011, cropped.
_base_ = [
    '../_base_/datasets/cub_cropped_bs80.py',
    '../_base_/schedules/protopnet_31e.py',
    '../_base_/default_runtime.py',
]
model = dict(
    type='ImageClassifier',
    backbone=dict(
        type='VGG',
        depth=19,
        init_cfg=dict(
            type='Pretrained',
            checkpoint='https://download.openmmlab.com/mmclassification/v0/'
            'vgg/vgg19_batch256_imagenet_20210208-e6920e4a.pth',
            prefix='backbone.',
        ),
    ),
    head=dict(
        type='ProtoPNetHead',
        num_classes=200,
        in_channels=512,
        prototypes_per_class=10,
        prototype_channels=128,
    ),
)
custom_hooks = [
    dict(
        type='PrototypeStageHook',
        stages=[
            dict(epochs=5, train=['add_on', 'prototypes']),
            dict(train=['backbone', 'add_on', 'prototypes']),
        ],
    ),
    dict(
        type='PrototypePushHook',
        start=11,
        interval=10,
        tune_epochs=20,
        dataloader={{_base_.push_dataloader}},
    ),
]
