# ProtoPNet's stages (Chen et al., NeurIPS 2019, by the authors' settings.py): 5 epochs of warming, then
# all but the last layer, whose rates fall tenfold every 5 epochs; pushes after the epochs 11, 21 and 31,
# each with 20 passes for the last layer.
_base_ = ['prototypes.py']
optim_wrapper = dict(
    optimizer=dict(type='Adam', lr=3e-3, weight_decay=1e-3),
    paramwise_cfg=dict(
        custom_keys={
            'backbone': dict(lr_mult=1e-4 / 3e-3),
            'prototype_layer': dict(decay_mult=0.0),
            'last_layer': dict(lr_mult=1e-4 / 3e-3, decay_mult=0.0),
        }
    ),
)
# The authors step the rates before each epoch, so the first step of five has four epochs.
param_scheduler = [dict(type='StepLR', by_epoch=True, begin=4, step_size=5, gamma=0.1)]
train_cfg = dict(by_epoch=True, max_epochs=31, val_interval=1)
push_hook = dict(type='PrototypePushHook', start=11, interval=10, tune_epochs=20)
prototype_hooks = [
    dict(type='PrototypeStageHook', stages=[dict(_base_.warm_stage, epochs=5), _base_.joint_stage]),
    push_hook,
]
proto2proto_hooks = [
    dict(
        type='PrototypeStageHook',
        stages=[dict(_base_.terms_stage, epochs=5), _base_.whole_stage],
        copy_last_layer=True,
    ),
    push_hook,
]
