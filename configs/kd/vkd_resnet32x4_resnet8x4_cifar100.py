# VkD (Miles et al., CVPR 2024) at the embedding. The weight is the authors' for DeiT; there is none for
# this pair.
_base_ = ['kd_resnet32x4_resnet8x4_cifar100.py']
model = dict(
    student_weight=1.0,
    terms=dict(
        _delete_=True,
        vkd=dict(type='VkDLoss', at='embedding', weight=1.0),
    ),
)
