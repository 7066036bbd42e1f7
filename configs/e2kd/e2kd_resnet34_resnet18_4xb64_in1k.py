_base_ = ['kd_resnet34_resnet18_4xb64_in1k.py']
model = dict(terms=dict(e2kd=dict(type='E2KDLoss', at='cam', size=224, weight=5.0)))
