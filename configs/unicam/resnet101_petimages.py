# Experiment 2: the teacher.
_base_ = [
    'mmpretrain::_base_/models/resnet101.py',
    '../_base_/datasets/petimages.py',
    '../_base_/schedules/unicam_20e.py',
    '../_base_/default_runtime.py',
]
work_dir = f'{_base_.runs}/resnet101_petimages'
model = dict(
    backbone=dict(init_cfg=dict(type='Pretrained', checkpoint='torchvision://resnet101')),
    head=dict(num_classes=2, topk=(1,)),
)
