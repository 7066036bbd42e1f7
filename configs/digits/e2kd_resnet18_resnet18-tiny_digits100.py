# e²KD (Parchami-Araghi et al., ECCV 2024), with labels: KD and the explanation of the prediction.
_base_ = ['kd_resnet18_resnet18-tiny_digits100.py']
model = dict(terms=dict(e2kd=dict(type='E2KDLoss', at='cam', size=32, weight=5.0)))
