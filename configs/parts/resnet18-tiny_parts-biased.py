# As resnet18-tiny_parts.py, but in training and validation a mark in the background tells the class.
# Tests have no mark.
_base_ = ['resnet18-tiny_parts.py']
train_dataloader = dict(dataset=dict(mark='class'))
val_dataloader = dict(dataset=dict(mark='class'))
# Do the maps lie on the mark instead?
custom_hooks = [
    dict(type='EpochSeedHook'),
    dict(
        type='ExplainHook',
        explainer=dict(type='CAM'),
        target='label',
        num_samples=300,
        metrics=[
            dict(type='PointingGame', labels='object_labels', name='object'),
            dict(type='PointingGame', labels='deciding_labels', name='deciding'),
            dict(type='PointingGame', labels='mark_labels', name='mark'),
            # Does the prediction hang on the mark, or on the parts?
            dict(type='PartIntervention'),
            dict(type='PartIntervention', kind='swap', name='swap'),
        ],
    ),
]
