# The student alone, with all 60,000 labels.
_base_ = [
    '../_base_/models/resnet18-tiny_fashion.py',
    '../_base_/datasets/fashion_mnist_view.py',
    '../_base_/schedules/fashion_1e.py',
    '../_base_/digits_runtime.py',
    '../_base_/teachers/resnet18_fashion.py',
    '../_base_/explain/cam_fashion.py',
]
custom_hooks = [
    dict(type='EpochSeedHook'),
    dict(_base_.cam_fashion, teacher={{_base_.teacher}}),
]
