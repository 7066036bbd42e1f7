# A teacher of other classes: of ImageNet's 1,000 classes it knows the ten of STL-10 as groups, whose
# probabilities are summed. The student is torchvision's, and its checkpoints load into torchvision.
_base_ = ['../_base_/datasets/stl10_bs64.py', '../_base_/default_runtime.py']
# STL-10 is read as RGB, so nothing is to be turned
data_preprocessor = dict(
    num_classes=10, mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], to_rgb=False
)
# The images' own 96 x 96 pixels
train_pipeline = [
    dict(type='RandomCrop', crop_size=96, padding=12),
    dict(type='RandomFlip', prob=0.5, direction='horizontal'),
    dict(type='PackInputs'),
]
test_pipeline = [dict(type='PackInputs')]
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = dict(dataset=dict(pipeline=test_pipeline))
model = dict(
    type='Distiller',
    student='torchvision::resnet18',
    teacher=dict(
        model='torchvision::resnet34',
        pretrained=True,
        normalize='same',  # as that of the student, and in RGB
        resize=224,
        classes=dict(
            airplane=[404, 895],  # airliner, warplane
            bird=[*range(7, 25), *range(80, 101), *range(127, 147)],
            car=[436, 468, 511, 609, 627, 656, 661, 751, 817],
            cat=[*range(281, 286)],
            deer=[351, 352, 353],  # hartebeest, impala, gazelle: ImageNet has no deer
            dog=[*range(151, 269)],
            horse=339,  # sorrel
            monkey=[*range(365, 385)],
            ship=[403, 510, 628, 724, 780, 814, 914],
            truck=[555, 569, 675, 717, 864, 867],
        ),
    ),
    input_size=96,
    terms=dict(kd=dict(type='KLDivLoss', at='logits', tau=2, weight=1.0)),
)
optim_wrapper = dict(optimizer=dict(type='SGD', lr=0.05, momentum=0.9, weight_decay=5e-4))
param_scheduler = dict(type='CosineAnnealingLR', T_max=100, by_epoch=True)
train_cfg = dict(by_epoch=True, max_epochs=100, val_interval=5)
val_cfg = dict()
test_cfg = dict()
custom_hooks = [
    dict(
        type='ExplainHook',
        num_samples=256,
        show_samples=16,
        metrics=[dict(type='MapAgreement'), dict(type='DeletionInsertion')],
    )
]
