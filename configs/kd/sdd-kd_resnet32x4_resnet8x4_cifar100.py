# Scale-decoupled distillation with KD in each cell (Wei et al., CVPR 2024); their code has no warm-up.
_base_ = ['kd_resnet32x4_resnet8x4_cifar100.py']
model = dict(
    terms=dict(
        _delete_=True,
        sdd=dict(
            type='SDDLoss',
            at='cam',
            scales=(1, 2),
            inner=dict(type='KLDivLoss', tau=4),
            complementary=2.0,
            weight=0.9,
        ),
    ),
)
