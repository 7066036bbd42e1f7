# Relational knowledge distillation (Park et al., CVPR 2019): 25 for distances, 50 for angles.
_base_ = ['kd_resnet32x4_resnet8x4_cifar100.py']
model = dict(
    student_weight=1.0,
    terms=dict(
        _delete_=True,
        rkd=dict(type='RKDLoss', at='embedding', distance=1.0, angle=2.0, weight=25.0),
    ),
)
