# Overhaul of feature distillation (Heo et al., ICCV 2019) between two ResNet-50, before each stage's
# last ReLU. The weight is the authors' for ImageNet: it belongs to sums over a map's elements, here at
# 224 x 224 pixels, and is halved with each earlier stage.
ofd_terms = dict(
    ofd1=dict(type='OFDLoss', at='backbone.layer1.2.relu@2:in', weight=0.0001 * 256 * 56 * 56 / 8),
    ofd2=dict(type='OFDLoss', at='backbone.layer2.3.relu@2:in', weight=0.0001 * 512 * 28 * 28 / 4),
    ofd3=dict(type='OFDLoss', at='backbone.layer3.5.relu@2:in', weight=0.0001 * 1024 * 14 * 14 / 2),
    ofd4=dict(type='OFDLoss', at='backbone.layer4.2.relu@2:in', weight=0.0001 * 2048 * 7 * 7),
)
