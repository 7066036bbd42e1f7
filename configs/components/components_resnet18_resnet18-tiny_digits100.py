# What in a teacher's output helps: the base of tools/analysis_tools/component_experiment.py. A shorter
# schedule than that of configs/digits, as there are many runs.
_base_ = ['../digits/kd_resnet18_resnet18-tiny_digits100.py']
model = dict(
    student_weight=0.1,
    terms=dict(kd=dict(weight=0.9, teacher_target=dict(kind='full'))),
)
optim_wrapper = dict(optimizer=dict(_delete_=True, type='AdamW', lr=0.005, weight_decay=0.05))
param_scheduler = dict(T_max=8)
train_cfg = dict(max_epochs=8, val_interval=8)
val_evaluator = [dict(type='Accuracy', topk=(1,)), dict(type='CalibrationError')]
test_evaluator = val_evaluator
custom_hooks = [dict(type='EpochSeedHook')]
