_base_ = ['kd_resnet50_resnet18_waterbirds.py']
model = dict(terms=dict(e2kd=dict(type='E2KDLoss', at='cam', size=224, weight=5.0)))
