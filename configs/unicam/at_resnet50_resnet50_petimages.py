# Experiment 1 on PetImages, attention-based: attention transfer after each stage. The authors' code
# feeds its term with logits, where it is always 0; the weights are ours.
_base_ = ['kd_resnet50_resnet50_petimages.py', '../_base_/terms/at_resnet50.py']
work_dir = f'{_base_.runs}/at_resnet50_resnet50_petimages'
model = dict(student_weight=1.0, terms=dict(_base_.at_terms, _delete_=True))
