# The teacher: 938 iterations.
_base_ = ['fashion_10e.py']
param_scheduler = dict(end=2)
train_cfg = dict(max_epochs=2, val_interval=2)
