# A model taught by its own class activation maps; a reading of Gu et al., ACCV 2020.
_base_ = ['../self_distillation/ce_resnet8_parts900.py']
model = dict(
    _delete_=True,
    type='Distiller',
    student={{_base_.model}},
    input_size=20,
    student_weight=0.0,
    terms=dict(il=dict(type='IntrospectiveLoss', at='cam')),
)
