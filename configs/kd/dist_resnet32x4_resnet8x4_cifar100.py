# DIST (Huang et al., NeurIPS 2022).
_base_ = ['kd_resnet32x4_resnet8x4_cifar100.py']
model = dict(
    student_weight=1.0,
    terms=dict(
        _delete_=True,
        dist=dict(type='DISTLoss', at='logits', tau=4, weight=2.0),
    ),
)
