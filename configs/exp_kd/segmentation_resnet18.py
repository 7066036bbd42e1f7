# To test a ResNet-18: the maps of what it predicts as masks of the object, on all images.
_base_ = [
    'mmpretrain::_base_/models/resnet18.py',
    '../_base_/datasets/imagenet_segmentation.py',
    '../_base_/default_runtime.py',
]
custom_hooks = [
    dict(
        type='ExplainHook',
        explainer=dict(type='CAM'),
        num_samples=None,
        target='own',
        teacher=dict(model='resnet34_8xb32_in1k', pretrained=True),
        base=dict(model='resnet18_8xb32_in1k', pretrained=True),
        unicam=False,
        metrics=[dict(type='MapSegmentation')],
    )
]
