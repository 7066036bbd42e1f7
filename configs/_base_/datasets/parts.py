# Birds made of parts: 3,600 images to train on, 900 to test on, with masks of all parts. As they are
# in memory, they are loaded in the main process, which makes runs repeatable to the last digit.
data_preprocessor = dict(num_classes=9, mean=[105.0] * 3, std=[41.0] * 3, to_rgb=True)
pack_inputs = dict(
    type='PackInputs',
    algorithm_keys=('gt_seg_map',),
    meta_keys=(
        *('sample_idx', 'flip', 'flip_direction'),
        *('object_labels', 'deciding_labels', 'mark_labels'),
    ),
)
train_pipeline = [dict(type='RandomFlip', prob=0.5, direction='horizontal'), pack_inputs]
test_pipeline = [pack_inputs]
train_dataloader = dict(
    batch_size=32,
    num_workers=0,
    persistent_workers=False,
    pin_memory=False,
    dataset=dict(type='Parts', split='train', num_samples=3600, pipeline=train_pipeline),
    sampler=dict(type='DefaultSampler', shuffle=True),
)
val_dataloader = dict(
    batch_size=100,
    num_workers=0,
    persistent_workers=False,
    pin_memory=False,
    dataset=dict(type='Parts', split='val', num_samples=900, pipeline=test_pipeline),
    sampler=dict(type='DefaultSampler', shuffle=False),
)
val_evaluator = dict(type='Accuracy', topk=(1,))
test_dataloader = dict(
    batch_size=100,
    num_workers=0,
    persistent_workers=False,
    pin_memory=False,
    dataset=dict(type='Parts', split='test', num_samples=900, pipeline=test_pipeline),
    sampler=dict(type='DefaultSampler', shuffle=False),
)
test_evaluator = val_evaluator
