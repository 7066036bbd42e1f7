# As long as its distilled versions, kd_… and map_…, which begin with the same weights.
_base_ = ['vit-micro_parts.py']
load_from = 'work_dirs/vit-micro_parts/epoch_16.pth'
optim_wrapper = dict(optimizer=dict(lr=0.0005))
param_scheduler = [
    dict(type='LinearLR', start_factor=0.1, by_epoch=True, end=1, convert_to_iter_based=True),
    dict(
        type='CosineAnnealingLR',
        by_epoch=True,
        begin=1,
        T_max=1,
        end=2,
        convert_to_iter_based=True,
    ),
]
train_cfg = dict(max_epochs=2, val_interval=2)
