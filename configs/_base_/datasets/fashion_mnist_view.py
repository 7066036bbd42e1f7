# As fashion_mnist_bs128.py, in one fixed view, so that a teacher's outputs can be computed once.
_base_ = ['fashion_mnist_bs128.py']
train_dataloader = dict(
    dataset=dict(
        _delete_=True, type='SeededViews', views=1, dataset={{_base_.train_dataloader.dataset}}
    ),
    sampler=dict(type='ViewSampler', shuffle=True),
)
