# CAT-KD (Guo et al., CVPR 2023): labels and class maps, no logits.
_base_ = ['kd_resnet18_resnet18-tiny_fashion.py']
model = dict(
    teacher=dict(cache='work_dirs/caches/resnet18_fashion_cat', resolution=2),
    terms=dict(
        _delete_=True, cat=dict(type='CATLoss', at='cam', resolution=2, normalize=False, weight=1.0)
    ),
)
