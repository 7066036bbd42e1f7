# CS-KD (Yun et al., CVPR 2020). With two images for each one, a batch of twice the size keeps the
# number of steps.
_base_ = ['ce_resnet8_parts900.py']
model = dict(
    _delete_=True,
    type='Distiller',
    student={{_base_.model}},
    input_size=20,
    terms=dict(cskd=dict(type='CSKDLoss', at='logits', tau=4, weight=1.0)),
)
train_dataloader = dict(
    batch_size=64, sampler=dict(_delete_=True, type='PairSampler', same='class')
)
