# Decoupled KL divergence (Cui et al., NeurIPS 2024), with a warm-up of 20 epochs. At temperature 100 the
# weights of classes are nearly the same, as in the authors' runs on CIFAR-100.
_base_ = ['kd_resnet32x4_resnet8x4_cifar100.py']
model = dict(
    student_weight=1.0,
    terms=dict(
        _delete_=True,
        ikl=dict(
            type='GKLLoss',
            at='logits',
            tau=4,
            alpha=1.0,
            beta=8.0,
            weights='sample',
            weight_tau=100,
            schedule=dict(type='linear', start_factor=1 / 20, end=20),
        ),
    ),
)
