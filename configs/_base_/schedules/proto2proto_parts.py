# Prototype networks at the length that Parts needs.
optim_wrapper = dict(
    optimizer=dict(type='Adam', lr=0.003, weight_decay=1e-3),
    paramwise_cfg=dict(custom_keys={'prototype_layer': dict(decay_mult=0.0)}),
)
param_scheduler = [dict(type='StepLR', by_epoch=True, begin=10, step_size=3, gamma=0.3)]
train_cfg = dict(by_epoch=True, max_epochs=16, val_interval=16)
val_cfg = dict()
test_cfg = dict()
find_unused_parameters = True
