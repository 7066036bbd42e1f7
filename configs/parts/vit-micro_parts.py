# A vision transformer of 64 tokens of 8 x 8 pixels and a class token, explained beside a convolutional
# network.
_base_ = [
    '../_base_/datasets/parts.py',
    '../_base_/schedules/parts_vit_16e.py',
    '../_base_/digits_runtime.py',
    '../_base_/teachers/resnet18-tiny_parts.py',
]
model = dict(
    type='ImageClassifier',
    backbone=dict(
        type='VisionTransformer',
        arch=dict(embed_dims=64, num_layers=3, num_heads=4, feedforward_channels=128),
        img_size=64,
        patch_size=8,
    ),
    head=dict(
        type='VisionTransformerClsHead',
        num_classes=9,
        in_channels=64,
        # mmpretrain's is zero, and a model without gradients cannot be explained before training
        init_cfg=dict(type='TruncNormal', layer='Linear', std=0.02),
        loss=dict(type='CrossEntropyLoss', loss_weight=1.0),
    ),
)
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
