# Variational information distillation (Ahn et al., CVPR 2019) after each stage.
_base_ = ['kd_resnet32x4_resnet8x4_cifar100.py']
model = dict(
    student_weight=1.0,
    terms=dict(
        _delete_=True,
        vid1=dict(type='VIDLoss', at='backbone.layer1', weight=1.0),
        vid2=dict(type='VIDLoss', at='backbone.layer2', weight=1.0),
        vid3=dict(type='VIDLoss', at='backbone.layer3', weight=1.0),
    ),
)
