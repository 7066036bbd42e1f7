# The teacher: all 1,197 training images.
_base_ = [
    '../_base_/models/resnet18_digits.py',
    '../_base_/datasets/digits_bs32.py',
    '../_base_/schedules/digits_7e.py',
    '../_base_/digits_runtime.py',
]
