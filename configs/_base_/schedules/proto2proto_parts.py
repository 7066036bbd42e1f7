# Prototype networks at the length that Parts needs.
_base_ = ['prototypes.py']
optim_wrapper = dict(
    optimizer=dict(type='Adam', lr=0.003, weight_decay=1e-3),
    paramwise_cfg=dict(custom_keys={'prototype_layer': dict(decay_mult=0.0)}),
)
param_scheduler = [dict(type='StepLR', by_epoch=True, begin=10, step_size=3, gamma=0.3)]
train_cfg = dict(by_epoch=True, max_epochs=16, val_interval=16)
push_hook = dict(type='PrototypePushHook', start=8, interval=8, tune_epochs=4)
prototype_hooks = [
    dict(type='PrototypeStageHook', stages=[dict(_base_.warm_stage, epochs=2), _base_.joint_stage]),
    push_hook,
]
proto2proto_hooks = [
    dict(
        type='PrototypeStageHook',
        stages=[dict(_base_.terms_stage, epochs=2), _base_.whole_stage],
        copy_last_layer=True,
    ),
    push_hook,
]
