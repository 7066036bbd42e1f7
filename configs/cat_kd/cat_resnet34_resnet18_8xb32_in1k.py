_base_ = ['mmpretrain::resnet/resnet18_8xb32_in1k.py']
default_scope = 'mmkdx'
model = dict(
    _delete_=True,
    type='Distiller',
    student={{_base_.model}},
    teacher=dict(model='resnet34_8xb32_in1k', pretrained=True),
    terms=dict(cat=dict(type='CATLoss', at='cam', resolution=2, normalize=False, weight=0.5)),
)
