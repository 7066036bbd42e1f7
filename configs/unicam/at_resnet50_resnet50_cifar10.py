# Experiment 1 on CIFAR-10, attention-based: attention transfer after each stage. The authors' code
# feeds its term with logits, where it is always 0; the weights are ours.
_base_ = ['kd_resnet50_resnet50_cifar10.py', '../_base_/terms/at_resnet50.py']
model = dict(student_weight=1.0, terms=dict(_base_.at_terms, _delete_=True))
