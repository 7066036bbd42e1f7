# A student learns a foundation model's embedding from images without labels, which lie anywhere below
# data/images. A checkpoint's weights load into timm's mobilenetv3_small_100 with num_classes=0.
_base_ = ['../_base_/default_runtime.py']
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='RandomResizedCrop', scale=224, crop_ratio_range=(0.5, 1.0), interpolation='bicubic'),
    dict(type='RandomFlip', prob=0.5, direction='horizontal'),
    dict(type='PackInputs'),
]
train_dataloader = dict(
    batch_size=128,
    num_workers=8,
    dataset=dict(type='UnlabelledImages', data_root='data/images', pipeline=train_pipeline),
    sampler=dict(type='DefaultSampler', shuffle=True),
)
model = dict(
    type='Distiller',
    student=dict(type='timm::mobilenetv3_small_100', num_classes=0),
    teacher=dict(
        # DINOv2's own size is 518 x 518
        model=dict(type='timm::vit_small_patch14_dinov2', img_size=224, num_classes=0),
        pretrained=True,
    ),
    student_weight=0,  # no labels
    # From 1,024 numbers to 384, by a projection with orthonormal rows
    terms=dict(embedding=dict(type='CosineLoss', at='embedding', adapter='orthogonal')),
)
optim_wrapper = dict(optimizer=dict(type='AdamW', lr=1e-3, weight_decay=0.05))
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, end=5, convert_to_iter_based=True),
    dict(type='CosineAnnealingLR', T_max=95, begin=5, end=100),
]
train_cfg = dict(by_epoch=True, max_epochs=100)
