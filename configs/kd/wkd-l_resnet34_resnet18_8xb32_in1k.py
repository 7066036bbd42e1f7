# WKD-L (Lv et al., NeurIPS 2024), in batches of 256. The authors' cost of classes is from CKA (see
# similarity='cka'); here it is the cosine of the teacher's weights of two classes.
_base_ = ['kd_resnet34_resnet18_8xb32_in1k.py']
model = dict(
    terms=dict(
        _delete_=True,
        label=dict(type='WKDLogitLoss', at='cam', transport_weight=0.0),
        transport=dict(
            type='WKDLogitLoss',
            at='cam',
            tau=2,
            target_weight=0.0,
            weight=30.0,
            schedule=dict(type='cosine', start_factor=1, end_factor=0, begin=-1, end=100),
        ),
    ),
)
