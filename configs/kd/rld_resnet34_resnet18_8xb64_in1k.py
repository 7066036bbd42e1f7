# Refined logit distillation (Sun et al., ICCV 2025). The authors' warm-up of one epoch is none.
_base_ = [
    'mmpretrain::_base_/models/resnet18.py',
    '../_base_/datasets/imagenet_bs64_cat.py',
    '../_base_/schedules/imagenet_100e.py',
    '../_base_/default_runtime.py',
]
model = dict(
    _delete_=True,
    type='Distiller',
    student={{_base_.model}},
    teacher=dict(model='resnet34_8xb32_in1k', pretrained=True),
    terms=dict(
        rld=dict(type='RLDLoss', at='logits', tau=1, confidence_tau=1, alpha=1.0, beta=0.5),
    ),
)
