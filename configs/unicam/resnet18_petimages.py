# Experiment 2: the base, which is the student's network trained on the data alone. Its 20 epochs are
# those of teachers: the paper does not say how bases were trained.
_base_ = [
    'mmpretrain::_base_/models/resnet18.py',
    '../_base_/datasets/petimages.py',
    '../_base_/schedules/unicam_20e.py',
    '../_base_/default_runtime.py',
]
work_dir = f'{_base_.runs}/resnet18_petimages'
model = dict(
    backbone=dict(init_cfg=dict(type='Pretrained', checkpoint='torchvision://resnet18')),
    head=dict(num_classes=2, topk=(1,)),
)
