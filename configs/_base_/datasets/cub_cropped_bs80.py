# CUB-200-2011, cropped to its birds and augmented beforehand (tools/dataset_converters/
# prototype_folders.py cub), in ProtoPNet's batches (Chen et al., NeurIPS 2019). Pillow resizes as
# torchvision does.
data_preprocessor = dict(
    num_classes=200, mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], to_rgb=True
)
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=(224, 224), interpolation='bilinear', backend='pillow'),
    dict(type='PackInputs'),
]
train_dataloader = dict(
    batch_size=80,
    num_workers=4,
    dataset=dict(
        type='CustomDataset',
        data_root='data/cub_prototypes',
        data_prefix='train_cropped_augmented',
        pipeline=test_pipeline,  # nothing is augmented any more
    ),
    sampler=dict(type='DefaultSampler', shuffle=True),
)
# The images that prototypes are pushed to, in their order
push_dataloader = dict(
    train_dataloader,
    batch_size=75,
    dataset=dict(train_dataloader['dataset'], data_prefix='train_cropped', test_mode=True),
    sampler=dict(type='DefaultSampler', shuffle=False),
)
val_dataloader = dict(
    push_dataloader,
    batch_size=100,
    dataset=dict(push_dataloader['dataset'], data_prefix='test_cropped'),
)
val_evaluator = dict(type='Accuracy', topk=(1,))
test_dataloader = val_dataloader
test_evaluator = val_evaluator
