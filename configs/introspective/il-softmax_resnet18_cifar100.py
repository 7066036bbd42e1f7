# Similarities as a teacher's logits. This tau leaves a label 0.9 where the others' mean similarity is 0.
_base_ = ['il_resnet18_cifar100.py']
model = dict(terms=dict(il=dict(mode='softmax', tau=0.147, lam=0.5, temperature=4.0)))
