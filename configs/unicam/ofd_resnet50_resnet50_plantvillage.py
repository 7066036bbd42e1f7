# Experiment 1 on PlantVillage, feature-based: the "overhaul". The authors published no code of it; the
# weights are those of its inventors for ImageNet.
_base_ = ['kd_resnet50_resnet50_plantvillage.py', '../_base_/terms/ofd_resnet50.py']
model = dict(student_weight=1.0, terms=dict(_base_.ofd_terms, _delete_=True))
