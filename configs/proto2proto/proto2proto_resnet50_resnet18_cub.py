_base_ = [
    'protopnet_resnet18_cub.py',
    '../_base_/explain/prototype_scores.py',
    '../_base_/terms/proto2proto.py',
]
model = dict(
    _delete_=True,
    type='Distiller',
    student={{_base_.model}},
    teacher=dict(
        model='mmkdx::proto2proto/protopnet_resnet50_cub.py',
        checkpoint='work_dirs/protopnet_resnet50_cub/epoch_31.pth',
    ),
    terms={{_base_.proto2proto_terms}},
)
train_dataloader = dict(batch_size=64)
custom_hooks = [*_base_.proto2proto_hooks, _base_.prototype_scores]
