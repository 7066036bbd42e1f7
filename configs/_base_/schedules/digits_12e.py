_base_ = ['digits_20e.py']
param_scheduler = dict(T_max=12)
train_cfg = dict(max_epochs=12, val_interval=4)
