# Targets of moving averages of each class, in place of each image's own.
_base_ = ['il_resnet18_cifar100.py']
model = dict(terms=dict(il=dict(level='class')))
