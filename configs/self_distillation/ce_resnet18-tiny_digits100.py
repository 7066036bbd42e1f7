# Cross entropy alone: what the others are compared with.
_base_ = ['../digits/resnet18-tiny_digits100.py', '../_base_/explain/class_similarity.py']
train_cfg = dict(val_interval=20)
val_evaluator = {{_base_.calibrated}}
test_evaluator = {{_base_.calibrated}}
custom_hooks = [dict(type='EpochSeedHook'), {{_base_.class_similarity}}]
