# The teacher of the tutorials: a ResNet-8 for digits of 16 x 16 pixels, trained in seconds.
_base_ = ['../../../configs/digits/resnet18_digits.py']
model = dict(
    backbone=dict(_delete_=True, type='CIFARResNet', depth=8, stem_channels=12, base_channels=12),
    head=dict(in_channels=48),
)
train_pipeline = [
    dict(type='Resize', scale=16),
    dict(type='RandomCrop', crop_size=16, padding=2),
    dict(type='PackInputs'),
]
test_pipeline = [dict(type='Resize', scale=16), dict(type='PackInputs')]
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader
optim_wrapper = dict(optimizer=dict(lr=0.1))
param_scheduler = dict(T_max=5)
train_cfg = dict(max_epochs=5, val_interval=5)
log_level = 'ERROR'
