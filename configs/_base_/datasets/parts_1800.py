# As parts.py, at half the size, and students have 1,800 training images (200 of each class), passed over
# twice an epoch.
_base_ = ['parts.py']
halve = dict(type='Resize', scale=32, interpolation='area', backend='cv2')
train_pipeline = [
    halve,
    dict(type='RandomFlip', prob=0.5, direction='horizontal'),
    {{_base_.pack_inputs}},
]
test_pipeline = [halve, {{_base_.pack_inputs}}]
train_dataloader = dict(
    dataset=dict(
        _delete_=True,
        type='RepeatDataset',
        times=2,
        dataset=dict(type='Parts', split='train', num_samples=1800, pipeline=train_pipeline),
    )
)
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = dict(dataset=dict(pipeline=test_pipeline))
