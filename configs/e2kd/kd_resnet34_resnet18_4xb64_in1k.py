# The paper's comparison: the same without explanations, and without labels.
_base_ = [
    'mmpretrain::_base_/models/resnet18.py',
    '../_base_/datasets/imagenet_bs64_cat.py',
    '../_base_/default_runtime.py',
]
model = dict(
    _delete_=True,
    type='Distiller',
    student={{_base_.model}},
    teacher=dict(model='resnet34_8xb32_in1k', pretrained=True),
    student_weight=0,
    terms=dict(kd=dict(type='KLDivLoss', at='logits', tau=1, weight=1.0)),
)
optim_wrapper = dict(
    optimizer=dict(type='AdamW', lr=0.01, weight_decay=1e-4), clip_grad=dict(max_norm=1.0)
)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=True, begin=0, end=5),
    dict(type='CosineAnnealingLR', T_max=195, by_epoch=True, begin=5, end=200),
]
train_cfg = dict(by_epoch=True, max_epochs=200, val_interval=1)
val_cfg = dict()
test_cfg = dict()
auto_scale_lr = dict(base_batch_size=256)
# With the paper's explainer; at every tenth evaluation
custom_hooks = [
    dict(
        type='ExplainHook',
        explainer=dict(type='CAM'),
        num_samples=512,
        interval=10,
        metrics=[dict(type='MapAgreement'), dict(type='DeletionInsertion')],
    )
]
