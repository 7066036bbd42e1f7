teacher = dict(
    model='mmkdx::cifar/wrn_40_2_cifar100.py',
    checkpoint='checkpoints/mdistiller/wrn_40_2.pth',
)
