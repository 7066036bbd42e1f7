# Proto2Proto's stages (Keswani et al., CVPR 2022, by the authors' YAML files): 6 epochs of warming,
# rates that fall tenfold every 4 epochs from the 20th on, pushes after the epochs 12, 22 and 32. (The
# files say 300 epochs; from the 32nd on rates are below 1e-3 of what they were.)
optim_wrapper = dict(
    optimizer=dict(type='Adam', lr=3e-3, weight_decay=1e-3),
    paramwise_cfg=dict(
        custom_keys={
            'backbone': dict(lr_mult=2e-4 / 3e-3),
            'prototype_layer': dict(decay_mult=0.0),
            'last_layer': dict(lr_mult=1e-4 / 3e-3, decay_mult=0.0),
        }
    ),
)
param_scheduler = [dict(type='StepLR', by_epoch=True, begin=15, step_size=4, gamma=0.1)]
train_cfg = dict(by_epoch=True, max_epochs=32, val_interval=1)
val_cfg = dict()
test_cfg = dict()
# Parts of the network are not trained in each stage
find_unused_parameters = True
