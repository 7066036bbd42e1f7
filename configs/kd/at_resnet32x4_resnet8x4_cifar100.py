# Attention transfer (Zagoruyko and Komodakis, ICLR 2017) after each stage.
_base_ = ['kd_resnet32x4_resnet8x4_cifar100.py']
model = dict(
    student_weight=1.0,
    terms=dict(
        _delete_=True,
        at1=dict(type='ATLoss', at='backbone.layer1', weight=1000.0),
        at2=dict(type='ATLoss', at='backbone.layer2', weight=1000.0),
        at3=dict(type='ATLoss', at='backbone.layer3', weight=1000.0),
    ),
)
