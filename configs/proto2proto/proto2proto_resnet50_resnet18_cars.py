# Proto2Proto (Keswani et al., CVPR 2022) with the teacher's active patches.
_base_ = ['protopnet_resnet18_cars.py']
model = dict(
    _delete_=True,
    type='Distiller',
    student={{_base_.model}},
    teacher=dict(
        model='configs/proto2proto/protopnet_resnet50_cars.py',
        checkpoint='work_dirs/protopnet_resnet50_cars/epoch_32.pth',
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
# First the two terms alone; then all, with the last layer, which begins as the teacher's.
custom_hooks = [
    dict(
        type='PrototypeStageHook',
        stages=[
            dict(epochs=6, train=['add_on', 'prototypes'], student_weight=0),
            dict(train=['backbone', 'add_on', 'prototypes', 'last_layer']),
        ],
        copy_last_layer=True,
    ),
    dict(
        type='PrototypePushHook',
        start=12,
        interval=10,
        tune_epochs=10,
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
