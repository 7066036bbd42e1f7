# e²KD (Parchami-Araghi et al., ECCV 2024), with labels: KD and the explanation of the prediction. The
# cache of this config holds logits and class maps, so KD, CAT-KD and Exp-KD read it as well.
_base_ = ['kd_resnet18_resnet18-tiny_fashion1000.py']
model = dict(terms=dict(e2kd=dict(type='E2KDLoss', at='cam', size=28, weight=5.0)))
