# The linear layer begins as PyTorch makes it, as in mdistiller.
model = dict(
    type='ImageClassifier',
    backbone=dict(type='CIFARShuffleNetV1'),
    neck=dict(type='GlobalAveragePooling'),
    head=dict(type='LinearClsHead', num_classes=100, in_channels=960, init_cfg=None),
)
