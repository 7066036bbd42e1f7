# Leaves of 38 classes, with the transforms, the batches and the normalisation of UniCAM's code. The
# split is ours: the data set has none, and that of the paper is not published.
data_preprocessor = dict(
    num_classes=38, mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], to_rgb=True
)
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='RandomResizedCrop', scale=224, interpolation='bilinear', backend='pillow'),
    dict(type='RandomFlip', prob=0.5, direction='horizontal'),
    dict(type='PackInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=(224, 224), interpolation='bilinear', backend='pillow'),
    dict(type='PackInputs'),
]
images = dict(
    type='ImageList',
    data_root='data/plantvillage',
    source='https://github.com/spMohanty/PlantVillage-Dataset',
)
train_dataloader = dict(
    batch_size=16,
    num_workers=4,
    dataset=dict(images, ann_file='train.txt', pipeline=train_pipeline),
    sampler=dict(type='DefaultSampler', shuffle=True),
)
val_dataloader = dict(
    batch_size=16,
    num_workers=4,
    dataset=dict(images, ann_file='test.txt', test_mode=True, pipeline=test_pipeline),
    sampler=dict(type='DefaultSampler', shuffle=False),
)
val_evaluator = dict(type='Accuracy', topk=(1,))
test_dataloader = val_dataloader
test_evaluator = val_evaluator
