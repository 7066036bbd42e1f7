# As il_resnet18_cifar100.py, on a wide ResNet.
_base_ = [
    '../_base_/models/wrn_40_2_cifar.py',
    '../_base_/datasets/cifar100_bs128.py',
    '../_base_/schedules/cifar_200e.py',
    '../_base_/cifar_runtime.py',
]
model = dict(
    _delete_=True,
    type='Distiller',
    student={{_base_.model}},
    input_size=32,
    student_weight=0.0,
    terms=dict(il=dict(type='IntrospectiveLoss', at='cam')),
)
