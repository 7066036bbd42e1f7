# As kd_resnet18_resnet18-tiny_digits100.py, with the teacher's logits computed once, into files:
# python tools/cache_teacher.py configs/digits/kd-cached_resnet18_resnet18-tiny_digits100.py
_base_ = ['kd_resnet18_resnet18-tiny_digits100.py']
model = dict(
    teacher=dict(
        _delete_=True,
        type='CachedTeacher',
        teacher={{_base_.model.teacher}},
        cache='work_dirs/caches/resnet18_digits100',
    )
)
train_dataloader = dict(
    dataset=dict(
        _delete_=True, type='SeededViews', views=4, dataset={{_base_.train_dataloader.dataset}}
    ),
    sampler=dict(type='ViewSampler', shuffle=True),
)
