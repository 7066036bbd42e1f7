# As parts.py, at 20 pixels (a tenth of the area), and students have 900 training images (100
# of each class), passed over 4 times an epoch.
_base_ = ['parts.py']
shrink = dict(type='Resize', scale=20, interpolation='area', backend='cv2')
train_pipeline = [
    shrink,
    dict(type='RandomFlip', prob=0.5, direction='horizontal'),
    {{_base_.pack_inputs}},
]
test_pipeline = [shrink, {{_base_.pack_inputs}}]
train_dataloader = dict(
    dataset=dict(
        _delete_=True,
        type='RepeatDataset',
        times=4,
        dataset=dict(type='Parts', split='train', num_samples=900, pipeline=train_pipeline),
    )
)
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = dict(dataset=dict(pipeline=test_pipeline))
