# The student of the tutorials: a third as wide. It sees 100 labelled images, 12 times an epoch.
_base_ = ['teacher.py']
model = dict(
    backbone=dict(stem_channels=4, base_channels=4),
    head=dict(in_channels=16),
)
train_dataloader = dict(
    dataset=dict(
        _delete_=True,
        type='RepeatDataset',
        times=12,
        dataset=dict(type='Digits', split='train', indices=100, pipeline={{_base_.train_pipeline}}),
    )
)
