# A transformer, with mmpretrain's recipe: Mixup and CutMix, which both models see.
_base_ = ['mmpretrain::swin_transformer/swin-tiny_16xb64_in1k.py']
default_scope = 'mmkdx'
model = dict(
    _delete_=True,
    type='Distiller',
    student={{_base_.model}},
    teacher=dict(model='swin-base_16xb64_in1k', pretrained=True),
    terms=dict(kd=dict(type='KLDivLoss', at='logits', tau=1, weight=1.0)),
)
