# Proto2Proto (Keswani et al., CVPR 2022): a student whose prototypes are its teacher's.
_base_ = ['protopnet_resnet18-tiny_fashion1000.py', '../_base_/terms/proto2proto.py']
model = dict(
    _delete_=True,
    type='Distiller',
    student={{_base_.model}},
    teacher={{_base_.teacher}},
    input_size=28,
    terms={{_base_.proto2proto_terms}},
)
custom_hooks = [
    dict(type='EpochSeedHook'),
    *_base_.proto2proto_hooks,
    dict(_base_.prototype_scores, num_samples=200),
]
