# The student alone, from scratch; the schedule is ours.
_base_ = [
    'mmpretrain::_base_/models/resnet18.py',
    '../_base_/datasets/waterbirds_bs64.py',
    '../_base_/default_runtime.py',
]
model = dict(head=dict(num_classes=2, topk=(1,)))
optim_wrapper = dict(
    optimizer=dict(type='AdamW', lr=0.01, weight_decay=1e-4), clip_grad=dict(max_norm=1.0)
)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=True, begin=0, end=5),
    dict(type='CosineAnnealingLR', T_max=695, by_epoch=True, begin=5, end=700),
]
train_cfg = dict(by_epoch=True, max_epochs=700, val_interval=10)
val_cfg = dict()
test_cfg = dict()
