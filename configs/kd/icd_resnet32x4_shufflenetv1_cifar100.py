# iCD (Xue et al., AAAI 2026): Gram matrices of local logits beside SDD with DKD, which has a
# warm-up of 20 epochs.
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
            inner=dict(type='DKDLoss', tau=4, alpha=1.0, beta=2.0),
            complementary=2.0,
            schedule=dict(type='linear', start_factor=1 / 20, end=20),
        ),
        gram=dict(
            type='CellGramLoss',
            at='cam',
            scales=(1, 2, 4),
            weights=(1 / 6, 2 / 6, 3 / 6),
            weight=2.0,
        ),
    ),
)
