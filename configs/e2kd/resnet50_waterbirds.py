# A teacher for Waterbirds, from ImageNet's weights.
_base_ = [
    'mmpretrain::_base_/models/resnet50.py',
    '../_base_/datasets/waterbirds_bs64.py',
    '../_base_/default_runtime.py',
]
model = dict(
    backbone=dict(init_cfg=dict(type='Pretrained', checkpoint='torchvision://resnet50')),
    head=dict(num_classes=2, topk=(1,)),
)
optim_wrapper = dict(optimizer=dict(type='SGD', lr=0.01, momentum=0.9, weight_decay=1e-4))
param_scheduler = dict(type='CosineAnnealingLR', T_max=50, by_epoch=True)
train_cfg = dict(by_epoch=True, max_epochs=50, val_interval=5)
val_cfg = dict()
test_cfg = dict()
