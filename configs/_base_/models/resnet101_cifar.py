# ResNet-101 for 32 x 32 images: stem of one 3 x 3 convolution, no max pooling.
_base_ = ['resnet50_cifar.py']
model = dict(backbone=dict(depth=101))
