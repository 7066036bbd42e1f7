# CAT without any image of the last class: does the student know it all the same?
_base_ = ['cat-label-free_resnet32x4_resnet32x4_cifar100.py']
train_dataloader = dict(
    dataset=dict(
        _delete_=True,
        type='ClassSubset',
        num_classes=99,
        dataset={{_base_.train_dataloader.dataset}},
    )
)
test_evaluator = [
    dict(type='Accuracy', topk=(1,)),
    dict(type='SingleLabelMetric', items=('recall',), average=None),
]
