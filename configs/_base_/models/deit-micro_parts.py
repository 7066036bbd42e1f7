# With a distillation token and its classifier.
_base_ = ['vit-micro_parts.py']
model = dict(
    backbone=dict(type='DistilledVisionTransformer'),
    head=dict(type='DeiTClsHead'),
)
