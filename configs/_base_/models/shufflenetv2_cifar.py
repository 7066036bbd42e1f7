_base_ = ['shufflenetv1_cifar.py']
model = dict(backbone=dict(type='CIFARShuffleNetV2'), head=dict(in_channels=1024))
