# The teacher of the digits: all 1,197 training images.
_base_ = [
    '../_base_/models/resnet18-tiny_digits.py',
    '../_base_/datasets/digits_bs32.py',
    '../_base_/schedules/digits_12e.py',
    '../_base_/digits_runtime.py',
]
