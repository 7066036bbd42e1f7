# Cats and dogs in 5 folds, with the transforms, the batches and the normalisation of UniCAM's code.
# Which fold is tested on, FOLD says, as in `FOLD=1 python tools/train.py ...`: --cfg-options come when
# a config has been read and its variables are put in. The folds are those of seed 42 in mmpretrain's
# KFoldDataset, which are not scikit-learn's.
fold = int('{{$FOLD:0}}')
if fold not in range(5):
    raise ValueError(f'FOLD is {fold}; the folds of PetImages are 0 to 4')
# Each fold has teachers and bases of its own: one of another fold has seen the images to test on.
runs = f'work_dirs/fold{fold}' if fold else 'work_dirs'
data_preprocessor = dict(
    num_classes=2, mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], to_rgb=True
)
train_pipeline = [
    dict(type='LoadImageFromFile'),
    # mmcv cannot turn hues back with numpy 2
    dict(type='NumpyToPIL', to_rgb=True),
    dict(type='torchvision/RandomRotation', degrees=15),
    dict(type='torchvision/ColorJitter', brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1),
    dict(type='PILToNumpy', to_bgr=True),
    dict(type='RandomFlip', prob=0.5, direction='horizontal'),
    dict(
        type='RandomResizedCrop',
        scale=224,
        crop_ratio_range=(0.8, 1.0),
        interpolation='bilinear',
        backend='pillow',
    ),
    dict(type='PackInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=(224, 224), interpolation='bilinear', backend='pillow'),
    dict(type='PackInputs'),
]
images = dict(
    type='ImageList',
    data_root='data/petimages',
    ann_file='all.txt',
    source='https://www.microsoft.com/en-us/download/details.aspx?id=54765',
)
folds = dict(type='KFoldDataset', num_splits=5, fold=fold, seed=42)
train_dataloader = dict(
    batch_size=32,
    num_workers=4,
    dataset=dict(folds, dataset=dict(images, pipeline=train_pipeline)),
    sampler=dict(type='DefaultSampler', shuffle=True),
)
val_dataloader = dict(
    batch_size=32,
    num_workers=4,
    # The one says which part, the other that a sample is not replaced by another one
    dataset=dict(
        folds, test_mode=True, dataset=dict(images, test_mode=True, pipeline=test_pipeline)
    ),
    sampler=dict(type='DefaultSampler', shuffle=False),
)
val_evaluator = dict(type='Accuracy', topk=(1,))
test_dataloader = val_dataloader
test_evaluator = val_evaluator
