# WKD-F (Lv et al., NeurIPS 2024) at the last map. The authors sum over its 256 channels.
_base_ = ['kd_resnet32x4_resnet8x4_cifar100.py']
model = dict(
    student_weight=1.0,
    terms=dict(
        _delete_=True,
        features=dict(
            type='WKDFeatureLoss',
            at='features',
            mean_ratio=4,
            weight=0.08 * 256,
            schedule=dict(type='cosine', start_factor=1, end_factor=0, begin=149, end=240),
        ),
    ),
)
