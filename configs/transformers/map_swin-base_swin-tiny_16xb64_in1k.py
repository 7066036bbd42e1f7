# At 224 pixels the last stage of Swin attends in one window, so that its attention has a map.
_base_ = ['../kd/kd_swin-base_swin-tiny_16xb64_in1k.py']
model = dict(
    terms=dict(
        map=dict(
            type='ExplanationMapLoss',
            at='logits',
            explainer=dict(type='GradientRollout', stage='last', detach='gradient'),
            weight=5.0,
        )
    )
)
custom_hooks = [
    dict(
        type='ExplainHook',
        explainer=dict(type='GradientRollout', stage='last'),
        interval=10,
        metrics=[dict(type='MapAgreement'), dict(type='DeletionInsertion')],
    )
]
