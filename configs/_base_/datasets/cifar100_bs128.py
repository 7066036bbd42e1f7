# As cifar100_bs64.py, in batches of 128.
_base_ = ['cifar100_bs64.py']
train_dataloader = dict(batch_size=128)
