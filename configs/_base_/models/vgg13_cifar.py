_base_ = ['vgg8_cifar.py']
model = dict(backbone=dict(depth=13))
