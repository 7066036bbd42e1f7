# Students have 1,000 labelled images (100 of each class, drawn with seed 0), in ten fixed views.
_base_ = ['fashion_mnist_bs128.py']
train_dataloader = dict(
    batch_size=25,
    dataset=dict(
        _delete_=True,
        type='SeededViews',
        views=10,
        dataset=dict(
            type='ClassSubset',
            per_class=100,
            seed=0,
            dataset={{_base_.train_dataloader.dataset}},
        ),
    ),
    sampler=dict(type='ViewSampler', shuffle=True),
)
