"""A small classifier of each backbone family of mmpretrain, with random weights."""

from __future__ import annotations

import torch
from tiny import build, classifier
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

_VIT = dict(embed_dims=16, num_layers=2, num_heads=2, feedforward_channels=32)
_SWIN = dict(embed_dims=16, depths=[1, 2], num_heads=[1, 2])
_THIN = dict(stem_channels=4, base_channels=4)
_CHANNELS = dict(channels=[8, 16, 16, 32], depths=[1, 1, 1, 1])
_POOL = dict(
    layers=[1, 1, 1, 1],
    embed_dims=[8, 12, 16, 32],
    mlp_ratios=[2, 2, 2, 2],
    layer_scale_init_value=1.0,
)
_TWINS = dict(
    embed_dims=[8, 16, 16, 16],
    depths=[1, 1, 1, 1],
    num_heads=[1, 1, 2, 2],
    patch_sizes=[4, 2, 2, 2],
    strides=[4, 2, 2, 2],
    mlp_ratios=[2, 2, 2, 2],
)

_GAP = dict(type='GlobalAveragePooling')


def _linear(channels: int, neck: dict | None = _GAP) -> dict:
    return dict(
        neck=neck,
        head=dict(type='LinearClsHead', num_classes=4, in_channels=channels),
    )


def _head(kind: str, channels: int | list = 16, **kwargs) -> dict:
    return dict(head=dict(type=kind, num_classes=4, in_channels=channels, **kwargs))


_PLAIN = dict(head=dict(type='ClsHead'))
_TOKEN = _head('VisionTransformerClsHead')

#: For each family the images' size, what follows the backbone, and the backbone's arguments. The
#: smallest of the given architectures where a family takes no other, and images as small as it takes.
FAMILIES: dict[str, tuple[int, dict, dict]] = {
    'LeNet5': (32, _PLAIN, dict(num_classes=4)),
    'AlexNet': (224, _PLAIN, dict(num_classes=4)),
    'VGG': (64, _linear(512), dict(depth=11, with_last_pool=False)),
    'RegNet': (
        64,
        _linear(64),
        dict(arch=dict(w0=8, wa=8.0, wm=2.0, group_w=8, depth=8, bot_mul=1.0)),
    ),
    'ResNet': (64, _linear(32), dict(depth=18, **_THIN)),
    'ResNeXt': (64, _linear(2048), dict(depth=50)),
    'ResNetV1c': (64, _linear(32), dict(depth=18, **_THIN)),
    'ResNetV1d': (64, _linear(32), dict(depth=18, **_THIN)),
    'ResNeSt': (64, _linear(2048), dict(depth=50)),
    'ResNet_CIFAR': (32, _linear(32), dict(depth=18, **_THIN)),
    'SEResNet': (64, _linear(2048), dict(depth=50)),
    'SEResNeXt': (64, _linear(2048), dict(depth=50)),
    'ShuffleNetV1': (64, _linear(960), dict()),
    'ShuffleNetV2': (64, _linear(1024), dict()),
    'MobileNetV2': (64, _linear(1280), dict(widen_factor=0.25)),
    'MobileNetV3': (
        64,
        dict(
            _head('StackedLinearClsHead', 288, mid_channels=[32], act_cfg=dict(type='HSwish')),
            neck=_GAP,
        ),
        dict(arch='small_050'),
    ),
    'VisionTransformer': (48, _TOKEN, dict(arch=_VIT, img_size=48)),
    'SwinTransformer': (
        64,
        _linear(32),
        dict(arch=_SWIN, img_size=64, window_size=4, out_indices=(1,)),
    ),
    'SwinTransformerV2': (
        64,
        _linear(32),
        dict(
            arch=dict(_SWIN, extra_norm_every_n_blocks=0),
            img_size=64,
            window_size=4,
            out_indices=(1,),
            pretrained_window_sizes=[0, 0],
        ),
    ),
    'TNT': (
        48,
        _TOKEN,
        dict(
            arch=dict(
                embed_dims_outer=16,
                embed_dims_inner=4,
                num_layers=2,
                num_heads_outer=2,
                num_heads_inner=2,
            ),
            img_size=48,
        ),
    ),
    'T2T_ViT': (
        64,
        _TOKEN,
        dict(
            img_size=64,
            embed_dims=16,
            num_layers=2,
            t2t_cfg=dict(token_dims=8, use_performer=False),
            layer_cfgs=dict(num_heads=2, feedforward_channels=32),
        ),
    ),
    'Res2Net': (64, _linear(2048), dict(depth=50)),
    'RepVGG': (
        64,
        _linear(16),
        dict(
            arch=dict(
                num_blocks=[1, 1, 1, 1],
                width_factor=[0.25, 0.25, 0.25, 0.25],
                group_layer_map=None,
                se_cfg=None,
            ),
            base_channels=8,
        ),
    ),
    'Conformer': (
        64,
        _head('ConformerHead', [256, 24]),
        dict(arch=dict(embed_dims=24, channel_ratio=1, num_heads=2, depths=12)),
    ),
    # As many channels as there are in a square, which the tokens are to be told from
    'MlpMixer': (
        48,
        dict(_linear(16), neck=dict(type='GlobalAveragePooling', dim=1)),
        dict(
            arch=dict(embed_dims=16, num_layers=2, tokens_mlp_dims=8, channels_mlp_dims=32),
            img_size=48,
        ),
    ),
    'DistilledVisionTransformer': (48, _head('DeiTClsHead'), dict(arch=_VIT, img_size=48)),
    'PCPVT': (64, _linear(16), dict(arch=dict(_TWINS, sr_ratios=[8, 4, 2, 1]))),
    'SVT': (
        64,
        _linear(16),
        dict(arch=dict(_TWINS, sr_ratios=[4, 2, 1, 1], window_sizes=[2, 2, 2, 2])),
    ),
    'EfficientNet': (64, _linear(1280), dict(arch='b0')),
    'EfficientNetV2': (64, _linear(1280), dict(arch='s')),
    'ConvNeXt': (64, _linear(32, None), dict(arch=_CHANNELS)),
    'HRNet': (
        64,
        dict(
            neck=[
                dict(type='HRFuseScales', in_channels=(4, 4, 4, 4)),
                _GAP,
            ],
            head=_linear(2048)['head'],
        ),
        dict(
            extra={
                f'stage{i}': dict(
                    num_modules=1,
                    num_branches=i,
                    block='BASIC' if i > 1 else 'BOTTLENECK',
                    num_blocks=[1] * i,
                    num_channels=[4] * i,
                )
                for i in range(1, 5)
            }
        ),
    ),
    'ConvMixer': (
        32,
        _linear(16),
        dict(arch=dict(embed_dims=16, depth=2, patch_size=4, kernel_size=3)),
    ),
    'EdgeNeXt': (
        64,
        _linear(32, None),
        dict(arch=dict(channels=[8, 16, 16, 32], depths=[1, 2, 2, 2], num_heads=[2, 2, 2, 2])),
    ),
    'CSPDarkNet': (64, _linear(1024), dict(depth=53)),
    'CSPResNet': (64, _linear(1024), dict(depth=50)),
    'CSPResNeXt': (64, _linear(2048), dict(depth=50)),
    'RepLKNet': (
        64,
        _linear(16),
        dict(
            arch=dict(
                large_kernel_sizes=[5, 5, 5, 3],
                layers=[1, 1, 1, 1],
                channels=[8, 8, 16, 16],
                small_kernel=3,
                dw_ratio=1,
            )
        ),
    ),
    'RepMLPNet': (
        64,
        _linear(32),
        dict(arch=dict(_CHANNELS, sharesets_nums=[1, 2, 2, 4]), img_size=64),
    ),
    'PoolFormer': (64, _linear(32), dict(arch=_POOL)),
    'RIFormer': (64, _linear(32), dict(arch=_POOL)),
    'DenseNet': (
        64,
        _linear(15),
        dict(arch=dict(growth_rate=4, depths=[1, 2, 2, 2], init_channels=8)),
    ),
    'VAN': (
        64,
        _linear(32),
        dict(arch=dict(embed_dims=[8, 16, 16, 32], depths=[1] * 4, ffn_ratios=[2] * 4)),
    ),
    'InceptionV3': (107, _PLAIN, dict(num_classes=4)),
    'MobileOne': (
        64,
        _linear(32),
        dict(
            arch=dict(
                num_blocks=[1, 1, 1, 1],
                width_factor=[0.125, 0.125, 0.125, 0.0625],
                num_conv_branches=[1, 1, 1, 1],
                num_se_blocks=[0, 0, 0, 0],
            )
        ),
    ),
    'EfficientFormer': (
        224,
        dict(
            _head('EfficientFormerClsHead', 32),
            neck=dict(type='GlobalAveragePooling', dim=1),
        ),
        dict(
            arch=dict(
                layers=[1, 1, 1, 2],
                embed_dims=[8, 16, 16, 32],
                downsamples=[False, True, True, True],
                vit_num=1,
            )
        ),
    ),
    'MViT': (
        64,
        _linear(32),
        dict(
            arch=dict(embed_dims=8, num_layers=4, num_heads=1, downscale_indices=[1, 3]),
            img_size=64,
        ),
    ),
    'DeiT3': (48, _TOKEN, dict(arch=_VIT, img_size=48)),
    'HorNet': (
        64,
        _linear(64, None),
        dict(
            arch=dict(
                base_dim=8,
                depths=[1, 1, 1, 1],
                orders=[2, 3, 4, 5],
                dw_cfg=[dict(type='DW', kernel_size=7)] * 4,
            )
        ),
    ),
    'MobileViT': (64, _linear(320), dict(arch='xx_small')),
    'DaViT': (
        64,
        _linear(64),
        dict(arch=dict(embed_dims=8, depths=[1] * 4, num_heads=[1, 2, 4, 8]), window_size=2),
    ),
    'BEiTViT': (48, _linear(16, None), dict(arch=_VIT, img_size=48)),
    'RevVisionTransformer': (48, _linear(32, None), dict(arch=_VIT, img_size=48)),
    'MixMIMTransformer': (
        64,
        _linear(64, None),
        dict(
            arch=dict(embed_dims=8, depths=[1, 1, 2, 1], num_heads=[1, 2, 2, 4]),
            img_size=64,
            window_size=[4, 4, 4, 2],
        ),
    ),
    'TinyViT': (
        64,
        _linear(32, None),
        dict(
            arch=dict(channels=[8, 16, 16, 32], num_heads=[1, 1, 2, 2], depths=[1, 1, 2, 1]),
            img_size=(64, 64),
            window_size=[4, 4, 4, 2],
        ),
    ),
    'LeViT': (128, dict(_head('LeViTClsHead', 384), neck=_GAP), dict(arch='128s', img_size=128)),
    'Vig': (224, dict(_head('VigClsHead', 192, hidden_dim=16), neck=_GAP), dict(arch='tiny')),
    'PyramidVig': (
        224,
        dict(_head('VigClsHead', 384, hidden_dim=16), neck=_GAP),
        dict(arch='tiny'),
    ),
    'XCiT': (
        64,
        _linear(16, None),
        dict(img_size=64, patch_size=16, embed_dims=16, depth=2, num_heads=2),
    ),
    'ViTSAM': (
        64,
        _linear(16),
        dict(arch=dict(_VIT, global_attn_indexes=[1]), img_size=64, window_size=2, out_channels=16),
    ),
    'ViTEVA02': (56, _TOKEN, dict(arch=_VIT, img_size=56, patch_size=14)),
    'HiViT': (
        64,
        _linear(32),
        dict(arch=dict(embed_dims=32, depths=[1, 1, 7], num_heads=2), img_size=64, out_indices=[6]),
    ),
}


def family(name: str, size: int | tuple[int, int] | None = None, **backbone) -> nn.Module:
    """A classifier of four classes in eval mode.

    Args:
        name (str): The class of its backbone.
        size (int | tuple[int, int], optional): The images' size in place of that of ``FAMILIES``.
        **backbone: Arguments of the backbone in place of those of ``FAMILIES``.
    """
    torch.manual_seed(0)
    usual, rest, arguments = FAMILIES[name]
    if size and 'img_size' in arguments:
        backbone['img_size'] = size
    kind = dict(type=name, **{**arguments, **backbone})
    model = build(dict(type='ImageClassifier', backbone=kind, **rest))
    return randomize(model, images(size or usual, channels=1 if name == 'LeNet5' else 3))


def randomize(model: nn.Module, inputs: torch.Tensor) -> nn.Module:
    """Moves what is initialised to a constant, and gives batch norm the statistics of some images."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() < 2 or parameter.min() == parameter.max():
                parameter.add_(torch.randn_like(parameter) * 0.2)
        norms = [module for module in model.eval().modules() if isinstance(module, _BatchNorm)]
        for norm in norms:
            norm.train().momentum = 1.0
        model(inputs)
    return model.eval()


def images(size: int | tuple[int, int], count: int = 2, seed: int = 1, channels: int = 3):
    """Random images."""
    size = (size, size) if isinstance(size, int) else size
    return torch.randn(count, channels, *size, generator=torch.Generator().manual_seed(seed))


def cnn(width: int = 6, **backbone) -> tuple[nn.Module, torch.Tensor]:
    """A network of two convolutions in double precision, and three images of 12 x 12 pixels.

    Its maps have 6 x 6 positions, and behind global average pooling is a linear layer for four classes.
    """
    torch.manual_seed(0)
    model = randomize(build(classifier(width, **backbone)), images(12))
    return model.double(), images(12, 3).double()
