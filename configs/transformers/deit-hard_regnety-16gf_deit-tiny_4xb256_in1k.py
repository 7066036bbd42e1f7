# DeiT (Touvron et al., ICML 2021): labels train the class token's classifier, and the teacher's
# predictions that of the distillation token. At test the head averages both.
_base_ = ['mmpretrain::deit/deit-tiny-distilled_4xb256_in1k.py']
default_scope = 'mmkdx'
model = dict(
    _delete_=True,
    type='Distiller',
    student={{_base_.model}},
    student_weight=0,
    teacher=dict(model='timm::regnety_160.deit_in1k', pretrained=True),
    terms=dict(
        label=dict(type='LabelLoss', at='head.layers.head', label_smoothing=0.1, weight=0.5),
        token=dict(
            type='KLDivLoss',
            at=('head.layers.head_dist', 'logits'),
            teacher_target=dict(kind='onehot', anchor='argmax'),
            weight=0.5,
        ),
    ),
)
