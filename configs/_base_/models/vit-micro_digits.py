# 16 tokens of 8 x 8 pixels and a class token.
model = dict(
    type='ImageClassifier',
    backbone=dict(
        type='VisionTransformer',
        arch=dict(embed_dims=48, num_layers=2, num_heads=4, feedforward_channels=96),
        img_size=32,
        patch_size=8,
    ),
    head=dict(
        type='VisionTransformerClsHead',
        num_classes=10,
        in_channels=48,
        loss=dict(type='CrossEntropyLoss', loss_weight=1.0),
    ),
)
