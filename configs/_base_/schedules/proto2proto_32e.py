# Proto2Proto's stages (Keswani et al., CVPR 2022, by the authors' YAML files): 6 epochs of warming,
# rates that fall tenfold every 4 epochs from the 20th on, pushes after the epochs 12, 22 and 32. (The
# files say 300 epochs; from the 32nd on rates are below 1e-3 of what they were.)
_base_ = ['protopnet_31e.py']
optim_wrapper = dict(
    paramwise_cfg=dict(custom_keys={'backbone': dict(lr_mult=2e-4 / 3e-3)}),
)
param_scheduler = [dict(type='StepLR', by_epoch=True, begin=15, step_size=4, gamma=0.1)]
train_cfg = dict(max_epochs=32)
push_hook = dict(_base_.push_hook, start=12, tune_epochs=10)
prototype_hooks = [
    dict(type='PrototypeStageHook', stages=[dict(_base_.warm_stage, epochs=6), _base_.joint_stage]),
    push_hook,
]
proto2proto_hooks = [
    dict(
        type='PrototypeStageHook',
        stages=[dict(_base_.terms_stage, epochs=6), _base_.whole_stage],
        copy_last_layer=True,
    ),
    push_hook,
]
