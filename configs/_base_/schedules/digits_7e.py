_base_ = ['digits_20e.py']
optim_wrapper = dict(optimizer=dict(lr=0.2))
param_scheduler = dict(T_max=7)
train_cfg = dict(max_epochs=7, val_interval=7)
