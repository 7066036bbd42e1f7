# The published schedule, which is not that of the other methods for this pair.
_base_ = [
    'mmpretrain::_base_/models/resnet18.py',
    '../_base_/datasets/imagenet_bs64_cat.py',
    '../_base_/schedules/imagenet_100e.py',
    '../_base_/default_runtime.py',
]
model = dict(
    _delete_=True,
    type='Distiller',
    student={{_base_.model}},
    teacher=dict(model='resnet34_8xb32_in1k', pretrained=True),
    terms=dict(expkd=dict(type='ExpKDLoss', at='cam', tau=1, topk=50, weight=100.0 * 512 * 2)),
)
param_scheduler = dict(milestones=[15, 30, 45], gamma=0.2)
custom_hooks = [
    dict(
        type='ExplainHook',
        explainer=dict(type='CAM'),
        num_samples=512,
        metrics=[
            dict(type='MapAgreement'),
            dict(type='DeletionInsertion'),
            dict(type='AverageDrop'),
        ],
    )
]
