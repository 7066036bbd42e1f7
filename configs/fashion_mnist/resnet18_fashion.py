# The teacher: all 60,000 training images.
_base_ = [
    '../_base_/models/resnet18_fashion.py',
    '../_base_/datasets/fashion_mnist_bs128.py',
    '../_base_/schedules/fashion_2e.py',
    '../_base_/digits_runtime.py',
]
