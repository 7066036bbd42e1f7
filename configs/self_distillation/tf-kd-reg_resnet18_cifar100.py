# Tf-KD by regularisation (Yuan et al., CVPR 2020): alpha 0.1, and a multiplier of 100 for 100 classes.
_base_ = ['ce_resnet18_cifar100.py']
model = dict(
    _delete_=True,
    type='Distiller',
    student={{_base_.model}},
    input_size=32,
    student_weight=0.9,
    terms=dict(tfkd=dict(type='TfKDRegLoss', at='logits', tau=20, weight=0.1)),
)
