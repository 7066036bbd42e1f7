_base_ = ['wrn_16_2_cifar.py']
model = dict(backbone=dict(depth=40))
