# The student of configs/digits, beside the same network trained without a teacher.
_base_ = [
    '../digits/kd_resnet18_resnet18-tiny_digits100.py',
    '../_base_/explain/what_was_distilled.py',
]
base = dict(
    model='mmkdx::digits/resnet18-tiny_digits100.py',
    checkpoint='work_dirs/resnet18-tiny_digits100/epoch_20.pth',
)
custom_hooks = [
    dict(type='EpochSeedHook'),
    dict(_base_.what_was_distilled, interval=1, base=base),
]
