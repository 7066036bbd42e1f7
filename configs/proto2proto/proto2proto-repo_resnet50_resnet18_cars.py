# The preset that replays the public code: its active patches are the student's, and the statistics of
# batch norm move in all stages.
_base_ = ['proto2proto_resnet50_resnet18_cars.py']
model = dict(terms=dict(patches=dict(mask_source='student')))
custom_hooks = [
    dict(
        type='PrototypeStageHook',
        stages=[
            dict(epochs=6, train=['add_on', 'prototypes'], student_weight=0),
            dict(train=['backbone', 'add_on', 'prototypes', 'last_layer']),
        ],
        copy_last_layer=True,
        norm_eval=False,
    ),
    dict(
        type='PrototypePushHook',
        start=12,
        interval=10,
        tune_epochs=10,
        norm_eval=False,
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
