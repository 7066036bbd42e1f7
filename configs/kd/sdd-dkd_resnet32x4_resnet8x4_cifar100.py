# Scale-decoupled distillation with DKD in each cell (Wei et al., CVPR 2024); warm-up of 20 epochs.
_base_ = ['kd_resnet32x4_resnet8x4_cifar100.py']
model = dict(
    student_weight=1.0,
    terms=dict(
        _delete_=True,
        sdd=dict(
            type='SDDLoss',
            at='cam',
            scales=(1, 2),
            inner=dict(type='DKDLoss', tau=4, alpha=1.0, beta=8.0),
            complementary=2.0,
            schedule=dict(type='linear', start_factor=1 / 20, end=20),
        ),
    ),
)
