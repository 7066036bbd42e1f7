# Cross entropy alone, on 100 images of each class of birds. Three classes each share a crest.
_base_ = [
    '../_base_/models/resnet18-tiny_digits.py',
    '../_base_/datasets/parts_900.py',
    '../_base_/schedules/parts_8e.py',
    '../_base_/digits_runtime.py',
    '../_base_/explain/class_similarity.py',
]
model = dict(
    backbone=dict(stem_channels=8, base_channels=8, strides=(1, 2, 2, 1)),
    head=dict(num_classes=9, in_channels=64),
)
train_cfg = dict(val_interval=8)
val_evaluator = {{_base_.calibrated}}
test_evaluator = {{_base_.calibrated}}
custom_hooks = [dict(type='EpochSeedHook'), {{_base_.class_similarity}}]
