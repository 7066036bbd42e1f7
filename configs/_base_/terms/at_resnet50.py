# Attention transfer (Zagoruyko and Komodakis, ICLR 2017) after each stage of a ResNet, with the weight
# that RepDistiller has.
at_terms = dict(
    at1=dict(type='ATLoss', at='backbone.layer1', weight=1000.0),
    at2=dict(type='ATLoss', at='backbone.layer2', weight=1000.0),
    at3=dict(type='ATLoss', at='backbone.layer3', weight=1000.0),
    at4=dict(type='ATLoss', at='backbone.layer4', weight=1000.0),
)
