model = dict(
    type='ImageClassifier',
    backbone=dict(type='VGG', depth=19),
    head=dict(
        type='ProtoPNetHead',
        num_classes=200,
        in_channels=512,
        prototypes_per_class=10,
        prototype_channels=128,
    ),
)
