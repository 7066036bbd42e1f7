# WKD-L and WKD-F (Lv et al., NeurIPS 2024); see the configs of each.
_base_ = ['kd_resnet32x4_resnet8x4_cifar100.py']
model = dict(
    student_weight=1.0,
    terms=dict(
        _delete_=True,
        label=dict(type='WKDLogitLoss', at='cam', transport_weight=0.0),
        transport=dict(
            type='WKDLogitLoss',
            at='cam',
            tau=8,
            target_weight=0.0,
            weight=200.0,
            schedule=dict(type='cosine', start_factor=1, end_factor=0, begin=149, end=240),
        ),
        features=dict(
            type='WKDFeatureLoss',
            at='features',
            mean_ratio=8,
            weight=0.08 * 256,
            schedule=dict(type='cosine', start_factor=1, end_factor=0, begin=149, end=240),
        ),
    ),
)
