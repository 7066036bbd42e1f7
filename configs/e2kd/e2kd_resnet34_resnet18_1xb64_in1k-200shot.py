# 200 images of each class.
_base_ = ['e2kd_resnet34_resnet18_4xb64_in1k.py']
train_dataloader = dict(
    batch_size=64,
    dataset=dict(
        _delete_=True,
        type='ClassSubset',
        per_class=200,
        seed=42,
        dataset={{_base_.train_dataloader.dataset}},
    ),
)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=True, begin=0, end=5),
    dict(type='CosineAnnealingLR', T_max=120, by_epoch=True, begin=5, end=125),
]
train_cfg = dict(max_epochs=125)
auto_scale_lr = dict(base_batch_size=64)
