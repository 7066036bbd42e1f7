# Experiment 1 on CIFAR-10: the teacher. It is the base, too: students have its architecture.
_base_ = [
    'mmpretrain::_base_/models/resnet50.py',
    '../_base_/datasets/cifar10_224_bs16.py',
    '../_base_/schedules/unicam_20e.py',
    '../_base_/default_runtime.py',
]
model = dict(
    backbone=dict(init_cfg=dict(type='Pretrained', checkpoint='torchvision://resnet50')),
    head=dict(num_classes=10, topk=(1,)),
)
