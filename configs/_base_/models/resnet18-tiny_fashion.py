# The same network at a quarter of its width: 11 thousand parameters.
_base_ = ['resnet18_fashion.py']
model = dict(backbone=dict(stem_channels=4, base_channels=4), head=dict(in_channels=16))
