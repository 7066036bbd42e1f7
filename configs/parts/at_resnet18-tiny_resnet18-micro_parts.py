# Attention transfer (Zagoruyko and Komodakis, ICLR 2017) after the last three stages.
_base_ = ['kd_resnet18-tiny_resnet18-micro_parts.py']
model = dict(
    terms=dict(
        _delete_=True,
        at2=dict(type='ATLoss', at='backbone.layer2', weight=1000.0),
        at3=dict(type='ATLoss', at='backbone.layer3', weight=1000.0),
        at4=dict(type='ATLoss', at='backbone.layer4', weight=1000.0),
    )
)
