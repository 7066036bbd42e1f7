_base_ = ['mmpretrain::resnet/resnet18_8xb32_in1k.py']
default_scope = 'mmkdx'
model = dict(
    _delete_=True,
    type='Distiller',
    student={{_base_.model}},
    teacher=dict(model='resnet34_8xb32_in1k', pretrained=True),
    terms=dict(cat=dict(type='CATLoss', at='cam', resolution=2, normalize=False, weight=0.5)),
)
custom_hooks = [
    dict(
        type='ExplainHook',
        explainer=dict(type='CAM'),
        num_samples=512,
        show_samples=16,
        metrics=[
            dict(type='MapAgreement'),
            dict(type='DeletionInsertion'),
            dict(type='AverageDrop'),
        ],
    )
]
