# FitNets (Romero et al., ICLR 2015), with a hint after the second stage.
_base_ = ['kd_resnet32x4_resnet8x4_cifar100.py']
model = dict(
    student_weight=1.0,
    terms=dict(
        _delete_=True,
        fitnet=dict(type='FitNetLoss', at='backbone.layer2', weight=100.0),
    ),
)
