# PS-KD (Kim et al., ICCV 2021). Its term is the whole classification loss.
_base_ = ['ce_resnet8_parts900.py']
model = dict(
    _delete_=True,
    type='Distiller',
    student={{_base_.model}},
    input_size=20,
    student_weight=0.0,
    terms=dict(pskd=dict(type='PSKDLoss', at='logits', num_samples=900, alpha=0.8)),
)
