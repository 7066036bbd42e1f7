# The paper's comparison: the same without explanations, and without labels.
_base_ = ['resnet18_waterbirds.py']
model = dict(
    _delete_=True,
    type='Distiller',
    student={{_base_.model}},
    teacher=dict(
        model='mmkdx::e2kd/resnet50_waterbirds.py',
        checkpoint='work_dirs/resnet50_waterbirds/epoch_50.pth',
    ),
    student_weight=0,
    terms=dict(kd=dict(type='KLDivLoss', at='logits', tau=1, weight=1.0)),
)
custom_hooks = [
    dict(
        type='ExplainHook',
        explainer=dict(type='CAM'),
        num_samples=512,
        metrics=[dict(type='MapAgreement')],
    )
]
