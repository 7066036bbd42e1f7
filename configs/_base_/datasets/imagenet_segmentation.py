# ImageNet-Segmentation, to test on: images and masks at 224 x 224, without keeping the aspect.
data_preprocessor = dict(
    num_classes=1000, mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], to_rgb=True
)
test_dataloader = dict(
    batch_size=32,
    num_workers=4,
    persistent_workers=True,
    dataset=dict(
        type='ImageNetSegmentation',
        data_root='data/imagenet_segmentation',
        pipeline=[
            dict(type='Resize', scale=(224, 224), interpolation='bilinear'),
            dict(
                type='PackInputs',
                algorithm_keys=('gt_seg_map',),
                meta_keys=('sample_idx', 'img_id', 'wordnet_id', 'ori_shape', 'img_shape'),
            ),
        ],
    ),
    sampler=dict(type='DefaultSampler', shuffle=False),
)
test_evaluator = dict(type='Accuracy', topk=(1, 5))
test_cfg = dict()
