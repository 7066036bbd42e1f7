# Decoupled KL divergence (Cui et al., NeurIPS 2024), with a warm-up of 20 epochs.
_base_ = [
    '../cifar/vgg8_cifar100.py',
    '../_base_/teachers/vgg13_cifar100.py',
    '../_base_/explain/cam_cifar100.py',
]
model = dict(
    _delete_=True,
    type='Distiller',
    student={{_base_.model}},
    teacher={{_base_.teacher}},
    input_size=32,
    terms=dict(
        ikl=dict(
            type='GKLLoss',
            at='logits',
            tau=4,
            alpha=1.0,
            beta=12.0,
            weights='sample',
            weight_tau=100,
            schedule=dict(type='linear', start_factor=1 / 20, end=20),
        ),
    ),
)
