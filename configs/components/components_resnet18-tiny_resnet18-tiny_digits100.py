# What in a teacher's output helps: the base of tools/analysis_tools/component_experiment.py. The student
# is like its teacher and has a twelfth of the images. A shorter schedule than that of configs/digits, as
# there are many runs.
_base_ = ['../self_distillation/ce_resnet18-tiny_digits100.py']
model = dict(
    _delete_=True,
    type='Distiller',
    student={{_base_.model}},
    teacher=dict(
        model='mmkdx::components/teacher_resnet18-tiny_digits.py',
        checkpoint='work_dirs/teacher_resnet18-tiny_digits/epoch_12.pth',
    ),
    input_size=32,
    student_weight=0.1,
    terms=dict(
        kd=dict(type='KLDivLoss', at='logits', tau=4, weight=0.9, teacher_target=dict(kind='full'))
    ),
)
optim_wrapper = dict(_delete_=True, optimizer=dict(type='AdamW', lr=0.005, weight_decay=0.05))
param_scheduler = dict(T_max=8)
train_cfg = dict(max_epochs=8, val_interval=8)
custom_hooks = [dict(type='EpochSeedHook')]
