# A model taught by its own class activation maps; a reading of Gu et al., ACCV 2020.
_base_ = ['resnet18-tiny_fashion1000.py']
model = dict(
    _delete_=True,
    type='Distiller',
    student={{_base_.model}},
    input_size=28,
    student_weight=0.0,
    terms=dict(il=dict(type='IntrospectiveLoss', at='cam')),
)
