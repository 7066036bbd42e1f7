# Attention transfer (Zagoruyko and Komodakis, ICLR 2017) after each stage.
_base_ = ['kd_resnet18_resnet18-tiny_fashion1000.py']
model = dict(
    teacher=dict(cache='work_dirs/caches/resnet18_fashion1000_at'),
    terms=dict(
        _delete_=True,
        at1=dict(type='ATLoss', at='backbone.layer1', weight=1000.0),
        at2=dict(type='ATLoss', at='backbone.layer2', weight=1000.0),
        at3=dict(type='ATLoss', at='backbone.layer3', weight=1000.0),
    ),
)
