# Exp-KD: labels and, at each position, which class is seen there.
_base_ = ['kd_resnet18_resnet18-tiny_fashion1000.py']
model = dict(
    terms=dict(_delete_=True, expkd=dict(type='ExpKDLoss', at='cam', weight=10000.0)),
)
