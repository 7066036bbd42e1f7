# Cross entropy alone, on 100 images of each class of birds. Three classes each share a crest.
_base_ = [
    '../_base_/models/resnet20_cifar.py',
    '../_base_/datasets/parts_900.py',
    '../_base_/schedules/parts_8e.py',
    '../_base_/digits_runtime.py',
    '../_base_/explain/class_similarity.py',
]
model = dict(backbone=dict(depth=8), head=dict(num_classes=9))
train_cfg = dict(val_interval=8)
val_evaluator = {{_base_.calibrated}}
test_evaluator = {{_base_.calibrated}}
custom_hooks = [dict(type='EpochSeedHook'), {{_base_.class_similarity}}]
