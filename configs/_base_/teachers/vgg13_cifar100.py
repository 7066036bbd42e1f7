teacher = dict(
    model='mmkdx::cifar/vgg13_cifar100.py',
    checkpoint='checkpoints/mdistiller/vgg13.pth',
)
