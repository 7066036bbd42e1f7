# Exp-KD: labels and, at each position, which class is seen there.
_base_ = ['kd_resnet18-tiny_resnet18-micro_parts.py']
model = dict(
    terms=dict(
        _delete_=True,
        expkd=dict(type='ExpKDLoss', at='cam', weight=300.0),
    )
)
