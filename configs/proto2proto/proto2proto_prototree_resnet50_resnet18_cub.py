# Proto2Proto on trees of one depth, whose nodes are paired by index: an extension, as the public
# code has no tree. Leaves are the student's own. Bounds are of squared distances, as elsewhere.
_base_ = [
    'prototree_resnet18_cub.py',
    '../_base_/explain/prototype_scores.py',
    '../_base_/terms/proto2proto.py',
]
model = dict(
    _delete_=True,
    type='Distiller',
    student={{_base_.model}},
    teacher=dict(
        model='mmkdx::proto2proto/prototree_resnet50_cub.py',
        checkpoint='work_dirs/prototree_resnet50_cub/epoch_100.pth',
    ),
    terms={{_base_.proto2proto_terms}},
)
custom_hooks = [*_base_.proto2proto_hooks, _base_.prototype_scores]
