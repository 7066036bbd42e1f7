"""Small networks and explainers that the tests of explainers share."""

from __future__ import annotations

import torch
from mmengine.registry import DefaultScope
from mmpretrain.registry import MODELS as MMPRETRAIN_MODELS
from tiny import build, classifier
from torch import nn

from mmkdx.explain import Explainer, build_explainer

TRANSFORMER_ONLY = {'AttentionRollout', 'GradientRollout', 'LeGrad'}
PROTOTYPES_ONLY = {'PrototypeMap'}
#: Explainers with fewer steps than their defaults
OPTIONS = dict(IntegratedGradients=dict(steps=3), SmoothGrad=dict(samples=2))


def model_for(name: str, head: str = 'linear', seed: int = 0) -> nn.Module:
    """A small network with batch norm, dropout and in-place ReLU; for rollout a small ViT."""
    torch.manual_seed(seed)
    if name in TRANSFORMER_ONLY:
        arch = dict(embed_dims=8, num_layers=2, num_heads=2, feedforward_channels=16)
        with DefaultScope.overwrite_default_scope('mmpretrain'):
            model = MMPRETRAIN_MODELS.build(
                dict(
                    type='ImageClassifier',
                    backbone=dict(type='VisionTransformer', arch=arch, img_size=16, patch_size=4),
                    head=dict(type='VisionTransformerClsHead', num_classes=4, in_channels=8),
                )
            )
    else:
        config = classifier(4, drop=0.5)
        if name in PROTOTYPES_ONLY:
            del config['neck']
            config['head'] = dict(
                type='ProtoPNetHead', num_classes=4, in_channels=4, prototypes_per_class=2,
                prototype_channels=3,
            )  # fmt: skip
        elif head == 'hidden' and name != 'CAM':
            config['head'] = dict(
                type='StackedLinearClsHead', num_classes=4, in_channels=4, mid_channels=[5],
                dropout_rate=0.5,
            )  # fmt: skip
        model = build(config)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.5)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
    return model.eval()


def explainer_for(name: str, **options) -> Explainer:
    """An explainer with few steps."""
    return build_explainer(dict(type=name, **OPTIONS.get(name, {}), **options))


def images(n: int = 3) -> torch.Tensor:
    """Random images of 16 x 16 pixels."""
    return torch.randn(n, 3, 16, 16, generator=torch.Generator().manual_seed(5))


def hook_count(model: nn.Module) -> int:
    kinds = [key for key in vars(nn.Module()) if key.endswith('hooks')]
    return sum(len(getattr(module, kind)) for module in model.modules() for kind in kinds)


def state_of(model: nn.Module) -> dict:
    """Everything that explaining might change."""
    return dict(
        modes=[module.training for module in model.modules()],
        asked=[parameter.requires_grad for parameter in model.parameters()],
        grads=[None if p.grad is None else p.grad.clone().tolist() for p in model.parameters()],
        values={key: value.clone().tolist() for key, value in model.state_dict().items()},
        hooks=hook_count(model),
        attributes=[sorted(vars(module)) for module in model.modules()],
        random=torch.get_rng_state().tolist(),
        grad_enabled=torch.is_grad_enabled(),
        autocast=torch.is_autocast_enabled('cpu'),
    )
