# The teacher of the birds: all 3,600 training images.
_base_ = ['../self_distillation/ce_resnet8_parts900.py']
train_dataloader = dict(dataset=dict(times=2, dataset=dict(num_samples=3600)))
custom_hooks = [dict(type='EpochSeedHook')]
