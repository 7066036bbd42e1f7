# Neuron selectivity transfer (Huang and Wang, 2017) after each stage.
_base_ = ['kd_resnet32x4_resnet8x4_cifar100.py']
model = dict(
    student_weight=1.0,
    terms=dict(
        _delete_=True,
        nst1=dict(type='NSTLoss', at='backbone.layer1', weight=50.0),
        nst2=dict(type='NSTLoss', at='backbone.layer2', weight=50.0),
        nst3=dict(type='NSTLoss', at='backbone.layer3', weight=50.0),
    ),
)
