# To test a ResNet-18: its accuracy as pixels turn black by the maps of what it predicts, on all images.
_base_ = [
    'mmpretrain::_base_/models/resnet18.py',
    '../_base_/datasets/imagenet_224_square.py',
    '../_base_/schedules/imagenet_100e.py',
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
        metrics=[dict(type='PerturbationAUC')],
    )
]
