# Similarity-preserving distillation (Tung and Mori, ICCV 2019).
_base_ = ['kd_resnet32x4_resnet8x4_cifar100.py']
model = dict(
    student_weight=1.0,
    terms=dict(
        _delete_=True,
        sp=dict(type='SPLoss', at='features', weight=3000.0),
    ),
)
