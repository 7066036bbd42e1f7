# Refined logit distillation (Sun et al., ICCV 2025), with a warm-up of 20 epochs.
_base_ = ['kd_resnet32x4_resnet8x4_cifar100.py']
model = dict(
    student_weight=1.0,
    terms=dict(
        _delete_=True,
        rld=dict(
            type='RLDLoss',
            at='logits',
            tau=4,
            confidence_tau=1,
            alpha=1.0,
            beta=8.0,
            schedule=dict(type='linear', start_factor=1 / 20, end=20),
        ),
    ),
)
