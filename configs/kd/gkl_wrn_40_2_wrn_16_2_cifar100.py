# Generalized KL divergence (Cui et al., TPAMI 2026) without class-wise weights; warm-up of 20 epochs.
_base_ = [
    '../cifar/wrn_16_2_cifar100.py',
    '../_base_/teachers/wrn_40_2_cifar100.py',
    '../_base_/explain/cam_cifar100.py',
]
model = dict(
    _delete_=True,
    type='Distiller',
    student={{_base_.model}},
    teacher={{_base_.teacher}},
    input_size=32,
    terms=dict(
        gkl=dict(
            type='GKLLoss',
            at='logits',
            tau=4,
            alpha=3.0,
            beta=20.0,
            gamma=0.3,
            weights='sample',
            weight_tau=4,
            normalize='batch',
            schedule=dict(type='linear', start_factor=1 / 20, end=20),
        ),
    ),
)
