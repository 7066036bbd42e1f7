teacher = dict(
    model='mmkdx::parts/resnet18-tiny_parts.py',
    checkpoint='work_dirs/resnet18-tiny_parts/epoch_8.pth',
)
