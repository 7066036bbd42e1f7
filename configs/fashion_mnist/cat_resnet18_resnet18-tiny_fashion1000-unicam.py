# UniCAM: what does the student see that the student alone does not? This config tests a finished run.
_base_ = ['cat_resnet18_resnet18-tiny_fashion1000.py', '../_base_/explain/what_was_distilled.py']
base = dict(
    model='mmkdx::fashion_mnist/resnet18-tiny_fashion1000.py',
    checkpoint='work_dirs/repeat/resnet18-tiny_fashion1000/seed_0/epoch_10.pth',
)
custom_hooks = [
    dict(type='EpochSeedHook'),
    dict(_base_.what_was_distilled, interval=1, num_samples=200, base=base),
]
