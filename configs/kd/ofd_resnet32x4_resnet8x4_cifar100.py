# Overhaul of feature distillation (Heo et al., ICCV 2019), before each stage's last ReLU. The published
# weight belongs to sums over a map's elements, and is halved with each earlier stage.
_base_ = ['kd_resnet32x4_resnet8x4_cifar100.py']
model = dict(
    student_weight=1.0,
    terms=dict(
        _delete_=True,
        ofd1=dict(
            type='OFDLoss',
            at=('backbone.layer1.0.relu@1:in', 'backbone.layer1.4.relu@1:in'),
            weight=0.001 * 64 * 32 * 32 / 4,
        ),
        ofd2=dict(
            type='OFDLoss',
            at=('backbone.layer2.0.relu@1:in', 'backbone.layer2.4.relu@1:in'),
            weight=0.001 * 128 * 16 * 16 / 2,
        ),
        ofd3=dict(
            type='OFDLoss',
            at=('backbone.layer3.0.relu@1:in', 'backbone.layer3.4.relu@1:in'),
            weight=0.001 * 256 * 8 * 8,
        ),
    ),
)
