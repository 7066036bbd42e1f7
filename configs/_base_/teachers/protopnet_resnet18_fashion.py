teacher = dict(
    model='mmkdx::fashion_mnist/protopnet_resnet18_fashion.py',
    checkpoint='work_dirs/protopnet_resnet18_fashion/epoch_16.pth',
)
