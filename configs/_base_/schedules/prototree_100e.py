# ProtoTree (Nauta et al., CVPR 2021, by the authors' public code): the backbone is frozen for 30 epochs.
optim_wrapper = dict(
    optimizer=dict(type='AdamW', lr=1e-3, eps=1e-7, weight_decay=0.0),
    paramwise_cfg=dict(custom_keys={'backbone': dict(lr_mult=0.01)}),
)
param_scheduler = [dict(type='MultiStepLR', by_epoch=True, milestones=[60, 70, 80, 90], gamma=0.5)]
train_cfg = dict(by_epoch=True, max_epochs=100, val_interval=5)
val_cfg = dict()
test_cfg = dict()
# Parts of the network are not trained in each stage
find_unused_parameters = True
