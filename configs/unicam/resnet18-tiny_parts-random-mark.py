# The base model: trained by labels on images whose mark says nothing about the class; where it is
# tested, the mark tells the class.
_base_ = ['../parts/resnet18-tiny_parts.py']
train_dataloader = dict(dataset=dict(mark='random'))
val_dataloader = dict(dataset=dict(mark='class'))
test_dataloader = dict(dataset=dict(mark='class'))
custom_hooks = [dict(type='EpochSeedHook')]
