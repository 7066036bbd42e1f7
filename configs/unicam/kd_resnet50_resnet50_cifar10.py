# Experiment 1 on CIFAR-10, response-based: Hinton's KD as the paper has it, by the weights and the
# temperature of its code, where the term is the mean squared error of probabilities times T².
_base_ = ['resnet50_cifar10.py', '../_base_/explain/what_was_distilled.py']
teacher = dict(
    model='mmkdx::unicam/resnet50_cifar10.py',
    checkpoint='work_dirs/resnet50_cifar10/epoch_20.pth',
)
model = dict(
    _delete_=True,
    type='Distiller',
    student={{_base_.model}},
    teacher=teacher,
    student_weight=0.7,
    terms=dict(kd=dict(type='KLDivLoss', at='logits', tau=20, weight=0.3)),
)
custom_hooks = [dict(_base_.what_was_distilled, base=teacher)]
train_cfg = dict(max_epochs=25)
