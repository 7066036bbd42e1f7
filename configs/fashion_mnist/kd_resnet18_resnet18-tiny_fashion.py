# Knowledge distillation (Hinton et al., 2015) from cached logits.
_base_ = ['resnet18-tiny_fashion.py']
model = dict(
    _delete_=True,
    type='Distiller',
    student={{_base_.model}},
    teacher=dict(
        type='CachedTeacher',
        teacher={{_base_.teacher}},
        cache='work_dirs/caches/resnet18_fashion',
    ),
    input_size=28,
    terms=dict(kd=dict(type='KLDivLoss', at='logits', tau=4, weight=1.0)),
)
custom_hooks = [dict(type='EpochSeedHook'), {{_base_.cam_fashion}}]
