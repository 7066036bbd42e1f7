# What in a teacher's output helps: the base of tools/analysis_tools/component_experiment.py.
_base_ = ['../kd/kd_resnet32x4_resnet8x4_cifar100.py']
model = dict(terms=dict(kd=dict(teacher_target=dict(kind='full'))))
custom_hooks = []
