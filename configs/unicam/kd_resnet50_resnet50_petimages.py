# Experiment 1 on PetImages, response-based: Hinton's KD as the paper has it, by the weights and the
# temperature of its code, where the term is the mean squared error of probabilities times T².
_base_ = ['resnet50_petimages.py', '../_base_/explain/what_was_distilled.py']
work_dir = f'{_base_.runs}/kd_resnet50_resnet50_petimages'
teacher = dict(
    model='mmkdx::unicam/resnet50_petimages.py',
    checkpoint=f'{_base_.runs}/resnet50_petimages/epoch_20.pth',
)
model = dict(
    _delete_=True,
    type='Distiller',
    student={{_base_.model}},
    teacher=teacher,
    student_weight=0.7,
    terms=dict(kd=dict(type='KLDivLoss', at='logits', tau=20, weight=0.3)),
)
custom_hooks = [dict(_base_.what_was_distilled, base=teacher)]
train_cfg = dict(max_epochs=25)
