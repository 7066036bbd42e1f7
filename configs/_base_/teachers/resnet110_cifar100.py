teacher = dict(
    model='mmkdx::cifar/resnet110_cifar100.py',
    checkpoint='checkpoints/mdistiller/resnet110.pth',
)
