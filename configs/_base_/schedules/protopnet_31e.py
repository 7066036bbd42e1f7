# ProtoPNet's stages (Chen et al., NeurIPS 2019, by the authors' settings.py): 5 epochs of warming, then
# all but the last layer, whose rates fall tenfold every 5 epochs; pushes after the epochs 11, 21 and 31,
# each with 20 passes for the last layer.
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
val_cfg = dict()
test_cfg = dict()
# Parts of the network are not trained in each stage
find_unused_parameters = True
