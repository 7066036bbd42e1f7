# Proto2Proto (Keswani et al., CVPR 2022) with the teacher's active patches.
proto2proto_terms = dict(
    prototypes=dict(type='GlobalExplanationLoss', at='prototypes', weight=10.0),
    patches=dict(
        type='PatchPrototypeLoss',
        at=[['head.add_on', 'head.prototype_layer']] * 2,
        weight=10.0,
    ),
)
