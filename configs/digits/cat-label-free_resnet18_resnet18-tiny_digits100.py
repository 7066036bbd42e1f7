# CAT (Guo et al., CVPR 2023): class maps alone; labels are never read.
_base_ = ['cat_resnet18_resnet18-tiny_digits100.py']
model = dict(student_weight=0.0)
