# Waterbirds with the transforms of e²KD and the normalisation of ImageNet. Accuracy is told apart for
# birds on the background of their class (id) and on the other one (ood).
data_preprocessor = dict(
    num_classes=2, mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], to_rgb=True
)
pack_inputs = dict(
    type='PackInputs',
    meta_keys=(
        *('sample_idx', 'img_path', 'ori_shape', 'img_shape', 'flip', 'flip_direction'),
        *('place', 'group'),
    ),
)
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='RandomFlip', prob=0.5, direction='horizontal'),
    dict(type='RandomResizedCrop', scale=224, crop_ratio_range=(0.7, 1.0)),
    pack_inputs,
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='ResizeEdge', scale=256, edge='short'),
    dict(type='CenterCrop', crop_size=224),
    pack_inputs,
]
data_root = 'data/waterbird_complete95_forest2water2'
train_dataloader = dict(
    batch_size=64,
    num_workers=4,
    dataset=dict(type='Waterbirds', data_root=data_root, split='train', pipeline=train_pipeline),
    sampler=dict(type='DefaultSampler', shuffle=True),
)
val_dataloader = dict(
    batch_size=64,
    num_workers=4,
    dataset=dict(type='Waterbirds', data_root=data_root, split='val', pipeline=test_pipeline),
    sampler=dict(type='DefaultSampler', shuffle=False),
)
val_evaluator = [
    dict(type='Accuracy', topk=(1,)),
    dict(type='GroupAccuracy', unions=dict(id=(0, 3), ood=(1, 2))),
]
test_dataloader = dict(
    batch_size=64,
    num_workers=4,
    dataset=dict(type='Waterbirds', data_root=data_root, split='test', pipeline=test_pipeline),
    sampler=dict(type='DefaultSampler', shuffle=False),
)
test_evaluator = val_evaluator
