# Experiment 1 on PlantVillage: the teacher. It is the base, too: students have its architecture.
_base_ = [
    'mmpretrain::_base_/models/resnet50.py',
    '../_base_/datasets/plantvillage.py',
    '../_base_/schedules/unicam_20e.py',
    '../_base_/default_runtime.py',
]
model = dict(
    backbone=dict(init_cfg=dict(type='Pretrained', checkpoint='torchvision://resnet50')),
    head=dict(num_classes=38, topk=(1,)),
)
optim_wrapper = dict(optimizer=dict(lr=1e-2, momentum=0.0))
