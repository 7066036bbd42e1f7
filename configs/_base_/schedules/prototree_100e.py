# ProtoTree (Nauta et al., CVPR 2021, by the authors' public code): the backbone is frozen for 30 epochs.
_base_ = ['prototypes.py']
optim_wrapper = dict(
    optimizer=dict(type='AdamW', lr=1e-3, eps=1e-7, weight_decay=0.0),
    paramwise_cfg=dict(custom_keys={'backbone': dict(lr_mult=0.01)}),
)
param_scheduler = [dict(type='MultiStepLR', by_epoch=True, milestones=[60, 70, 80, 90], gamma=0.5)]
train_cfg = dict(by_epoch=True, max_epochs=100, val_interval=5)
push_hook = dict(type='PrototypePushHook', start=100, tune_epochs=0, prune=dict(threshold=0.01))
prototype_hooks = [
    dict(
        type='PrototypeStageHook', stages=[dict(_base_.warm_stage, epochs=30), _base_.joint_stage]
    ),
    push_hook,
]
# A tree has no last layer
proto2proto_hooks = [
    dict(
        type='PrototypeStageHook', stages=[dict(_base_.terms_stage, epochs=30), _base_.joint_stage]
    ),
    push_hook,
]
