_base_ = ['resnet20_cifar.py']
model = dict(backbone=dict(depth=8, stem_channels=32, base_channels=64), head=dict(in_channels=256))
