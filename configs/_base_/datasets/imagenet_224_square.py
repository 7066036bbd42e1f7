# As imagenet_bs64_cat.py, but tests see the whole image: resized to 224 x 224, neither cropped nor in
# its own aspect, as perturbation tests of maps have it (Chefer et al., CVPR 2021; Exp-KD). Pillow
# resizes as torchvision does.
_base_ = ['imagenet_bs64_cat.py']
test_dataloader = dict(
    dataset=dict(
        pipeline=[
            dict(type='LoadImageFromFile'),
            dict(type='Resize', scale=(224, 224), interpolation='bilinear', backend='pillow'),
            dict(type='PackInputs'),
        ]
    )
)
