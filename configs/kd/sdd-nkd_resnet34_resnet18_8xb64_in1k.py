# Scale-decoupled distillation with NKD in each cell (Wei et al., CVPR 2024). The authors' warm-up of one
# epoch is none.
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
        sdd=dict(
            type='SDDLoss',
            at='cam',
            scales=(1, 2),
            inner=dict(type='NKDLoss', tau=1, gamma=0.5),
            complementary=2.0,
        ),
    ),
)
