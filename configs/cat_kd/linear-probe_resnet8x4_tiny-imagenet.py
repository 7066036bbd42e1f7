# How well do a distilled student's features serve other data? Everything but the classifier is frozen,
# batch norm included.
_base_ = [
    '../_base_/models/resnet8x4_cifar.py',
    '../_base_/datasets/tiny_imagenet_bs64.py',
    '../_base_/default_runtime.py',
]
model = dict(
    backbone=dict(
        frozen_stages=3,
        init_cfg=dict(
            type='Pretrained',
            checkpoint='work_dirs/cat_resnet32x4_resnet8x4_cifar100/epoch_240.pth',
            prefix='backbone.',
        ),
    ),
    head=dict(num_classes=200),
)
optim_wrapper = dict(optimizer=dict(type='SGD', lr=0.1, momentum=0.9, weight_decay=0.0))
param_scheduler = dict(type='MultiStepLR', milestones=[30, 60, 90], gamma=0.1, by_epoch=True)
train_cfg = dict(by_epoch=True, max_epochs=100, val_interval=5)
val_cfg = dict()
test_cfg = dict()
