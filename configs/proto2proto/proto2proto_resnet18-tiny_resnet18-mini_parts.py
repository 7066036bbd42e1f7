# Proto2Proto (Keswani et al., CVPR 2022): a student whose prototypes are its teacher's.
_base_ = ['protopnet_resnet18-mini_parts.py']
model = dict(
    _delete_=True,
    type='Distiller',
    student={{_base_.model}},
    teacher=dict(
        model='configs/proto2proto/protopnet_resnet18-tiny_parts.py',
        checkpoint='work_dirs/protopnet_resnet18-tiny_parts/epoch_16.pth',
    ),
    input_size=64,
    terms=dict(
        prototypes=dict(type='GlobalExplanationLoss', at='prototypes', weight=10.0),
        patches=dict(
            type='PatchPrototypeLoss',
            at=[['head.add_on', 'head.prototype_layer']] * 2,
            weight=10.0,
        ),
    ),
)
# First the two terms alone; then all, with the last layer, which begins as the teacher's.
custom_hooks = [
    dict(type='EpochSeedHook'),
    dict(
        type='PrototypeStageHook',
        stages=[
            dict(epochs=2, train=['add_on', 'prototypes'], student_weight=0),
            dict(train=['backbone', 'add_on', 'prototypes', 'last_layer']),
        ],
        copy_last_layer=True,
    ),
    dict(type='PrototypePushHook', start=8, interval=8, tune_epochs=4),
    dict(
        type='ExplainHook',
        explainer=dict(type='PrototypeMap'),
        target='label',
        num_samples=None,
        show_samples=16,
        metrics=[
            dict(type='PrototypeTransfer'),
            dict(type='PrototypeParts', parts=[1, 2, 3, 4, 5, 6, 7], purity_side=72 / 224),
            dict(type='PointingGame', labels='deciding_labels', name='deciding'),
        ],
    ),
]
