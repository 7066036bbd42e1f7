# DisturbLabel (Xie et al., CVPR 2016).
_base_ = ['ce_resnet18_cifar100.py']
train_pipeline = [
    *_base_.train_pipeline[:-1],
    dict(type='DisturbLabel', num_classes=100, prob=0.1),
    _base_.train_pipeline[-1],
]
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
