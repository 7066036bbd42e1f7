# DeiT (Touvron et al., ICML 2021): labels train the class token's classifier, and the teacher's
# predictions that of the distillation token. At test the head averages both.
_base_ = ['kd_resnet18-tiny_vit-micro_parts.py']
model = dict(
    student=dict(
        backbone=dict(type='DistilledVisionTransformer'),
        head=dict(type='DeiTClsHead'),
    ),
    student_weight=0,
    terms=dict(
        _delete_=True,
        label=dict(type='LabelLoss', at='head.layers.head', weight=0.5),
        token=dict(
            type='KLDivLoss',
            at=('head.layers.head_dist', 'logits'),
            teacher_target=dict(kind='onehot', anchor='argmax'),
            weight=0.5,
        ),
    ),
)
