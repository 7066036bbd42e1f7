# ResNet-18 for 32 x 32 images at a sixteenth of its usual width: 45 thousand parameters.
_base_ = ['resnet18_digits.py']
model = dict(backbone=dict(stem_channels=4, base_channels=4), head=dict(in_channels=32))
