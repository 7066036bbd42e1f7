# CAT with binary maps of the teacher: where a class is, not how strongly.
_base_ = ['cat-label-free_resnet32x4_resnet32x4_cifar100.py']
model = dict(terms=dict(cat=dict(binarize=True, weight=300.0)))
