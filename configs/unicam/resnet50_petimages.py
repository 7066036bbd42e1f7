# Experiment 1 on PetImages: the teacher. It is the base, too: students have its architecture.
_base_ = [
    'mmpretrain::_base_/models/resnet50.py',
    '../_base_/datasets/petimages.py',
    '../_base_/schedules/unicam_20e.py',
    '../_base_/default_runtime.py',
]
work_dir = f'{_base_.runs}/resnet50_petimages'
model = dict(
    backbone=dict(init_cfg=dict(type='Pretrained', checkpoint='torchvision://resnet50')),
    head=dict(num_classes=2, topk=(1,)),
)
