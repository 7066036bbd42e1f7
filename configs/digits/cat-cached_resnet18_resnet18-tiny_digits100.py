# As cat_resnet18_resnet18-tiny_digits100.py, with the teacher's class maps computed once, into files:
# python tools/cache_teacher.py configs/digits/cat-cached_resnet18_resnet18-tiny_digits100.py
_base_ = ['kd-cached_resnet18_resnet18-tiny_digits100.py']
model = dict(
    teacher=dict(cache='work_dirs/caches/resnet18_digits100_cat'),
    terms=dict(
        _delete_=True, cat=dict(type='CATLoss', at='cam', resolution=2, normalize=False, weight=1.0)
    ),
)
