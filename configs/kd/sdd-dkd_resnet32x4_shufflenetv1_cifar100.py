# Scale-decoupled distillation with DKD in each cell (Wei et al., CVPR 2024); warm-up of 20 epochs.
_base_ = [
    '../cifar/shufflenetv1_cifar100.py',
    '../_base_/teachers/resnet32x4_cifar100.py',
    '../_base_/explain/cam_cifar100.py',
]
model = dict(
    _delete_=True,
    type='Distiller',
    student={{_base_.model}},
    teacher={{_base_.teacher}},
    input_size=32,
    terms=dict(
        sdd=dict(
            type='SDDLoss',
            at='cam',
            scales=(1, 2, 4),
            inner=dict(type='DKDLoss', tau=4, alpha=1.0, beta=8.0),
            complementary=2.0,
            schedule=dict(type='linear', start_factor=1 / 20, end=20),
        ),
    ),
)
