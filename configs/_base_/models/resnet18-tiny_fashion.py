# The same network at half its width.
_base_ = ['resnet18_fashion.py']
model = dict(backbone=dict(stem_channels=8, base_channels=8), head=dict(in_channels=32))
