# DeiT (Touvron et al., ICML 2021): labels train the class token's classifier, and the teacher's
# predictions that of the distillation token. At test the head averages both.
_base_ = [
    '../_base_/models/deit-micro_digits.py',
    '../_base_/datasets/digits_100.py',
    '../_base_/schedules/digits_vit_20e.py',
    '../_base_/digits_runtime.py',
    '../_base_/teachers/resnet18_digits.py',
]
model = dict(
    _delete_=True,
    type='Distiller',
    student={{_base_.model}},
    student_weight=0,
    teacher={{_base_.teacher}},
    input_size=32,
    terms=dict(
        label=dict(type='LabelLoss', at='head.layers.head', weight=0.5),
        token=dict(
            type='KLDivLoss',
            at=('head.layers.head_dist', 'logits'),
            teacher_target=dict(kind='onehot', anchor='argmax'),
            weight=0.5,
        ),
    ),
)
