# Three teachers of unequal quality. Each counts for an image by its cross entropy with the label, as in
# CA-MKD (Zhang et al., ICASSP 2022). Train the two weaker ones first, beside resnet18_digits.py:
# python tools/train.py configs/digits/resnet18-tiny_digits100.py
# python tools/train.py configs/digits/vit-micro_digits100.py
_base_ = ['kd_resnet18_resnet18-tiny_digits100.py']
model = dict(
    teacher=dict(
        _delete_=True,
        type='TeacherEnsemble',
        weights='cross_entropy',
        teachers=[
            {{_base_.model.teacher}},
            dict(
                model='mmkdx::digits/resnet18-tiny_digits100.py',
                checkpoint='work_dirs/resnet18-tiny_digits100/epoch_20.pth',
            ),
            dict(
                model='mmkdx::digits/vit-micro_digits100.py',
                checkpoint='work_dirs/vit-micro_digits100/epoch_20.pth',
            ),
        ],
    )
)
