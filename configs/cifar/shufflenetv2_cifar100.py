_base_ = [
    '../_base_/models/shufflenetv2_cifar.py',
    '../_base_/datasets/cifar100_bs64.py',
    '../_base_/schedules/cifar_240e.py',
    '../_base_/cifar_runtime.py',
]
optim_wrapper = dict(optimizer=dict(lr=0.01))
