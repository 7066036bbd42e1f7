# 64 tokens of 8 x 8 pixels and a class token.
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
        # As DeiT's; mmpretrain's is zero
        init_cfg=dict(type='TruncNormal', layer='Linear', std=0.02),
        loss=dict(type='CrossEntropyLoss', loss_weight=1.0),
    ),
)
