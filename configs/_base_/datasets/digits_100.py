# As digits_bs32.py, but students have only the first 100 training images (10 of each class), passed
# over 12 times an epoch.
_base_ = ['digits_bs32.py']
train_dataloader = dict(
    dataset=dict(
        _delete_=True,
        type='RepeatDataset',
        times=12,
        dataset=dict(type='Digits', split='train', indices=100, pipeline={{_base_.train_pipeline}}),
    )
)
