# A vision transformer alone: 100 labelled images.
_base_ = [
    '../_base_/models/vit-micro_digits.py',
    '../_base_/datasets/digits_100.py',
    '../_base_/schedules/digits_vit_20e.py',
    '../_base_/digits_runtime.py',
]
