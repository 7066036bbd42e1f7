# Proto2Proto on trees of one depth, whose nodes are paired by index: an extension, as the public
# code has no tree. Leaves are the student's own. Bounds are of squared distances, as elsewhere.
_base_ = ['prototree_resnet18_cub.py']
model = dict(
    _delete_=True,
    type='Distiller',
    student={{_base_.model}},
    teacher=dict(
        model='configs/proto2proto/prototree_resnet50_cub.py',
        checkpoint='work_dirs/prototree_resnet50_cub/epoch_100.pth',
    ),
    terms=dict(
        prototypes=dict(type='GlobalExplanationLoss', at='prototypes', weight=10.0),
        patches=dict(
            type='PatchPrototypeLoss',
            at=[['head.add_on', 'head.prototype_layer']] * 2,
            weight=10.0,
        ),
    ),
)
train_dataloader = dict(batch_size=64)
custom_hooks = [
    dict(
        type='PrototypeStageHook',
        stages=[
            dict(epochs=30, train=['add_on', 'prototypes'], student_weight=0),
            dict(train=['backbone', 'add_on', 'prototypes']),
        ],
    ),
    dict(
        type='PrototypePushHook',
        start=100,
        tune_epochs=0,
        prune=dict(threshold=0.01),
        dataloader={{_base_.push_dataloader}},
    ),
    dict(
        type='ExplainHook',
        explainer=dict(type='PrototypeMap'),
        target='label',
        num_samples=None,
        metrics=[dict(type='PrototypeTransfer')],
    ),
]
