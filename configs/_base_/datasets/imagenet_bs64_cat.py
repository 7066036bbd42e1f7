# ImageNet as CAT-KD trains on it: random resized crops of 224 and flips, in batches of 512, which are
# 64 on each of 8 GPUs; with fewer GPUs, set batch_size so that it stays 512 in total.
_base_ = ['mmpretrain::_base_/datasets/imagenet_bs64.py']
