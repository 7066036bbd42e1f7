# The prototype teacher: ProtoPNet (Chen et al., NeurIPS 2019) on the network of the trained teacher,
# with 1,000 labelled images (100 of each class).
_base_ = [
    '../_base_/models/resnet18_fashion.py',
    '../_base_/datasets/fashion_mnist_bs128.py',
    '../_base_/schedules/proto2proto_parts.py',
    '../_base_/explain/prototype_scores.py',
    '../_base_/digits_runtime.py',
]
model = dict(
    backbone=dict(
        init_cfg=dict(
            type='Pretrained',
            checkpoint='work_dirs/resnet18_fashion/epoch_2.pth',
            prefix='backbone.',
        )
    ),
    neck=None,
    head=dict(
        _delete_=True,
        type='ProtoPNetHead',
        num_classes=10,
        in_channels=64,
        prototypes_per_class=5,
        prototype_channels=32,
    ),
)
train_dataloader = dict(
    batch_size=50,
    dataset=dict(
        _delete_=True,
        type='ClassSubset',
        per_class=100,
        seed=0,
        dataset={{_base_.train_dataloader.dataset}},
    ),
)
custom_hooks = [
    *_base_.custom_hooks,
    *_base_.prototype_hooks,
    dict(_base_.prototype_scores, num_samples=200),
]
