teacher = dict(
    model='mmkdx::digits/resnet18_digits.py',
    checkpoint='work_dirs/resnet18_digits/epoch_7.pth',
)
