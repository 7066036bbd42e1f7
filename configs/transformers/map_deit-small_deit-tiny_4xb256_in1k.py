# A transformer from a larger one, with mmpretrain's recipe: KD, and for the class that the teacher
# predicts the maps of both models' attention.
_base_ = ['mmpretrain::deit/deit-tiny_4xb256_in1k.py']
default_scope = 'mmkdx'
model = dict(
    _delete_=True,
    type='Distiller',
    student={{_base_.model}},
    teacher=dict(model='deit-small_4xb256_in1k', pretrained=True),
    terms=dict(
        kd=dict(type='KLDivLoss', at='logits', tau=1, weight=1.0),
        map=dict(
            type='ExplanationMapLoss',
            at='logits',
            explainer=dict(type='GradientRollout', detach='gradient'),
            weight=5.0,
        ),
    ),
)
custom_hooks = [
    dict(
        type='ExplainHook',
        explainer=dict(type='GradientRollout'),
        interval=10,
        metrics=[dict(type='MapAgreement'), dict(type='DeletionInsertion')],
    )
]
