# The student alone: cross entropy. Tf-KD and BAN begin with its weights.
_base_ = [
    '../_base_/models/resnet18_cifar.py',
    '../_base_/datasets/cifar100_bs128.py',
    '../_base_/schedules/cifar_200e.py',
    '../_base_/cifar_runtime.py',
]
