teacher = dict(
    model='mmkdx::proto2proto/protopnet_resnet18-tiny_parts.py',
    checkpoint='work_dirs/protopnet_resnet18-tiny_parts/epoch_16.pth',
)
