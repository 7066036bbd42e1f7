# Contrastive representation distillation (Tian et al., ICLR 2020).
_base_ = ['kd_resnet32x4_resnet8x4_cifar100.py']
model = dict(
    student_weight=1.0,
    terms=dict(
        _delete_=True,
        crd=dict(type='CRDLoss', at='embedding', num_samples=50000, weight=0.8),
    ),
)
