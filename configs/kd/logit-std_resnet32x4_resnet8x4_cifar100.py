# Knowledge distillation of standardised logits (Sun et al., CVPR 2024).
_base_ = ['kd_resnet32x4_resnet8x4_cifar100.py']
model = dict(
    student_weight=0.1,
    terms=dict(
        _delete_=True,
        kd=dict(type='LogitStdLoss', at='logits', tau=2, weight=9.0),
    ),
)
