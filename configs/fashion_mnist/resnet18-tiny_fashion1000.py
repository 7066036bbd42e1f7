# The student alone: 1,000 labelled images. It is explained beside the teacher that does not teach it.
_base_ = [
    '../_base_/models/resnet18-tiny_fashion.py',
    '../_base_/datasets/fashion_mnist_1000.py',
    '../_base_/schedules/fashion_10e.py',
    '../_base_/digits_runtime.py',
    '../_base_/teachers/resnet18_fashion.py',
    '../_base_/explain/cam_fashion.py',
]
custom_hooks = [
    dict(type='EpochSeedHook'),
    dict(_base_.cam_fashion, teacher={{_base_.teacher}}),
]
