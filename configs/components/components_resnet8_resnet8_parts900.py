# What in a teacher's output helps: the base of tools/analysis_tools/component_experiment.py. The student
# is like its teacher and has a quarter of the images. The nine classes are three families of three,
# which share a crest.
_base_ = ['../self_distillation/ce_resnet8_parts900.py']
model = dict(
    _delete_=True,
    type='Distiller',
    student={{_base_.model}},
    teacher=dict(
        model='mmkdx::components/teacher_resnet8_parts3600.py',
        checkpoint='work_dirs/teacher_resnet8_parts3600/epoch_8.pth',
    ),
    input_size=20,
    student_weight=0.1,
    terms=dict(
        kd=dict(
            type='KLDivLoss',
            at='logits',
            tau=4,
            weight=0.9,
            teacher_target=dict(kind='full'),
        )
    ),
)
custom_hooks = [dict(type='EpochSeedHook')]
