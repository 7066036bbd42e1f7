# Experiment 1 on PetImages, feature-based: the "overhaul". The authors published no code of it; the
# weights are those of its inventors for ImageNet.
_base_ = ['kd_resnet50_resnet50_petimages.py', '../_base_/terms/ofd_resnet50.py']
work_dir = f'{_base_.runs}/ofd_resnet50_resnet50_petimages'
model = dict(student_weight=1.0, terms=dict(_base_.ofd_terms, _delete_=True))
