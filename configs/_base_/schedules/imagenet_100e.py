# mmpretrain's 100 epochs with a tenth of the learning rate after each of 30, 60 and 90, in batches of
# 512 (8 x 64).
_base_ = ['mmpretrain::_base_/schedules/imagenet_bs256.py']
optim_wrapper = dict(optimizer=dict(lr=0.2))
auto_scale_lr = dict(base_batch_size=512)
