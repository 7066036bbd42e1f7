# A vision transformer alone, explained beside a convolutional network.
_base_ = [
    '../_base_/models/vit-micro_parts.py',
    '../_base_/datasets/parts.py',
    '../_base_/schedules/parts_vit_16e.py',
    '../_base_/digits_runtime.py',
    '../_base_/teachers/resnet18-tiny_parts.py',
]
# A transformer learns from many steps.
train_dataloader = dict(batch_size=16)
custom_hooks = [
    dict(type='EpochSeedHook'),
    dict(
        type='ExplainHook',
        explainer=dict(student=dict(type='GradientRollout'), teacher=dict(type='GradCAM')),
        target='label',
        num_samples=300,
        teacher={{_base_.teacher}},
        metrics=[
            dict(type='MapAgreement'),
            dict(type='PointingGame', labels='object_labels', name='object'),
            dict(type='PointingGame', labels='deciding_labels', name='deciding'),
            dict(type='MapSegmentation', labels='object_labels'),
        ],
    ),
]
