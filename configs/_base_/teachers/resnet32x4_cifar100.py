teacher = dict(
    model='mmkdx::cifar/resnet32x4_cifar100.py',
    checkpoint='checkpoints/mdistiller/resnet32x4.pth',
)
