# What only a teacher can have brought: on the same images as the base model the student learns from a
# teacher that decides by the mark, and from no label.
_base_ = ['resnet18-tiny_parts-random-mark.py', '../_base_/explain/what_was_distilled.py']
model = dict(
    _delete_=True,
    type='Distiller',
    student={{_base_.model}},
    teacher=dict(
        model='mmkdx::parts/resnet18-tiny_parts-biased.py',
        checkpoint='work_dirs/resnet18-tiny_parts-biased/epoch_8.pth',
    ),
    student_weight=0,
    input_size=64,
    terms=dict(kd=dict(type='KLDivLoss', at='logits', tau=4, weight=1.0)),
)
base = dict(
    model='mmkdx::unicam/resnet18-tiny_parts-random-mark.py',
    checkpoint='work_dirs/resnet18-tiny_parts-random-mark/epoch_8.pth',
)
custom_hooks = [
    dict(type='EpochSeedHook'),
    dict(
        _base_.what_was_distilled,
        base=base,
        # The last one: does the student need the mark, as its teacher does?
        metrics=[*_base_.what_was_distilled.metrics, dict(type='PartIntervention')],
    ),
]
