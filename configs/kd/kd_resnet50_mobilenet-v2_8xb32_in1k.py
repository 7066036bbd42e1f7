_base_ = ['mmpretrain::mobilenet_v2/mobilenet-v2_8xb32_in1k.py']
default_scope = 'mmkdx'
model = dict(
    _delete_=True,
    type='Distiller',
    student={{_base_.model}},
    teacher=dict(model='resnet50_8xb32_in1k', pretrained=True),
    terms=dict(kd=dict(type='KLDivLoss', at='logits', tau=1, weight=3.0)),
)
