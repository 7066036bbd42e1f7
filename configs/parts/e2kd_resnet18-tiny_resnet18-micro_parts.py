# e²KD (Parchami-Araghi et al., ECCV 2024), with labels: KD and the explanation of the prediction.
_base_ = ['kd_resnet18-tiny_resnet18-micro_parts.py']
model = dict(terms=dict(e2kd=dict(type='E2KDLoss', at='cam', size=64, weight=5.0)))
