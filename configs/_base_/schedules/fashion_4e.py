# The teacher: 1,876 iterations.
_base_ = ['fashion_20e.py']
optim_wrapper = dict(optimizer=dict(lr=0.1))
param_scheduler = dict(end=4)
train_cfg = dict(max_epochs=4, val_interval=2)
