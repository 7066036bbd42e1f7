# Proto2Proto (Keswani et al., CVPR 2022): a student whose prototypes are its teacher's.
_base_ = [
    'protopnet_resnet18-mini_parts.py',
    '../_base_/terms/proto2proto.py',
]
model = dict(
    _delete_=True,
    type='Distiller',
    student={{_base_.model}},
    teacher=dict(
        model='configs/proto2proto/protopnet_resnet18-tiny_parts.py',
        checkpoint='work_dirs/protopnet_resnet18-tiny_parts/epoch_16.pth',
    ),
    input_size=64,
    terms={{_base_.proto2proto_terms}},
)
custom_hooks = [
    dict(type='EpochSeedHook'),
    *_base_.proto2proto_hooks,
    _base_.prototype_scores,
]
