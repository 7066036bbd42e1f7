_base_ = ['resnet8x4_cifar.py']
model = dict(backbone=dict(depth=32))
