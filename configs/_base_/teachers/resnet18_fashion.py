teacher = dict(
    model='mmkdx::fashion_mnist/resnet18_fashion.py',
    checkpoint='work_dirs/resnet18_fashion/epoch_2.pth',
)
