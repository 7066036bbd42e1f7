# A convolutional network from a transformer: its Grad-CAM is to be the map of the teacher's attention.
_base_ = ['mmpretrain::resnet/resnet18_8xb32_in1k.py']
default_scope = 'mmkdx'
model = dict(
    _delete_=True,
    type='Distiller',
    student={{_base_.model}},
    teacher=dict(model='vit-base-p16_32xb128-mae_in1k', pretrained=True),
    terms=dict(
        kd=dict(type='KLDivLoss', at='logits', tau=1, weight=1.0),
        map=dict(
            type='ExplanationMapLoss',
            at='logits',
            explainer='GradCAM',
            teacher_explainer='GradientRollout',
            # Grad-CAM may be negative everywhere, and then has no gradient after ReLU
            relu=False,
            weight=5.0,
        ),
    ),
)
custom_hooks = [
    dict(
        type='ExplainHook',
        explainer=dict(student=dict(type='GradCAM'), teacher=dict(type='GradientRollout')),
        interval=10,
        metrics=[dict(type='MapAgreement'), dict(type='DeletionInsertion')],
    )
]
