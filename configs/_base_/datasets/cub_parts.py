# The test images of CUB-200-2011, read from the public archive and cropped to their birds as those of
# cub_cropped_bs80.py are, with the places of the parts.
data_preprocessor = dict(
    num_classes=200, mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], to_rgb=True
)
test_dataloader = dict(
    batch_size=100,
    num_workers=4,
    dataset=dict(
        type='CUB',
        data_root='data/CUB_200_2011',
        split='test',
        parts=True,
        pipeline=[
            dict(type='LoadImageFromFile'),
            dict(type='CropToBox'),
            dict(type='Resize', scale=(224, 224), interpolation='bilinear', backend='pillow'),
            dict(type='PackInputs', algorithm_keys=('gt_keypoints', 'gt_keypoints_visible')),
        ],
    ),
    sampler=dict(type='DefaultSampler', shuffle=False),
)
test_evaluator = dict(type='Accuracy', topk=(1,))
test_cfg = dict()
