# DDGSD (Xu and Liu, AAAI 2019). Of each image there are two views in a batch; the cross entropies of
# both are summed.
_base_ = ['ce_resnet18_cifar100.py']
model = dict(
    _delete_=True,
    type='Distiller',
    student={{_base_.model}},
    input_size=32,
    student_weight=2.0,
    terms=dict(ddgsd=dict(type='DDGSDLoss', at='logits', tau=1, mu=5e-4, weight=1.0)),
)
train_dataloader = dict(
    batch_size=256, sampler=dict(_delete_=True, type='PairSampler', same='image')
)
