# CAT with the maps of the classes that the teacher deems least likely. The published config says 75
# and its code takes 76, as `legacy` does here.
_base_ = [
    '../cifar/resnet8x4_cifar100.py',
    '../_base_/teachers/resnet32x4_cifar100.py',
    '../_base_/explain/cam_cifar100.py',
]
model = dict(
    _delete_=True,
    type='Distiller',
    student={{_base_.model}},
    teacher={{_base_.teacher}},
    student_weight=0.0,
    input_size=32,
    terms=dict(
        cat=dict(
            type='CATLoss',
            at='cam',
            resolution=2,
            normalize=True,
            class_select='bottomk',
            num_classes_selected=75,
            legacy=True,
            weight=300.0,
        )
    ),
)
