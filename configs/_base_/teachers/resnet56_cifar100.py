teacher = dict(
    model='mmkdx::cifar/resnet56_cifar100.py',
    checkpoint='checkpoints/mdistiller/resnet56.pth',
)
