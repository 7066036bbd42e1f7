teacher = dict(
    model='mmkdx::self_distillation/ce_resnet18_cifar100.py',
    checkpoint='work_dirs/ce_resnet18_cifar100/epoch_200.pth',
)
