teacher = dict(
    model='mmkdx::cifar/resnet50_cifar100.py',
    checkpoint='checkpoints/mdistiller/resnet50.pth',
)
