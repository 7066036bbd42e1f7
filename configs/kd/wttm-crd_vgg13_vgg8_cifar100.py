# Weighted transformed teacher matching beside CRD (Zheng and Yang, ICLR 2024).
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
        crd=dict(type='CRDLoss', at='embedding', num_samples=50000, weight=0.8),
        wttm=dict(type='WTTMLoss', at='logits', gamma=0.2, weight=4.0),
    ),
)
