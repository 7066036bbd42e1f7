# Probabilistic knowledge transfer (Passalis and Tefas, ECCV 2018). The published weight belongs to a
# mean over pairs, so it is divided by the batch size.
_base_ = ['kd_resnet32x4_resnet8x4_cifar100.py']
model = dict(
    student_weight=1.0,
    terms=dict(
        _delete_=True,
        pkt=dict(type='PKTLoss', at='embedding', weight=30000.0 / 64),
    ),
)
