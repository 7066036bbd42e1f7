"""Batches of explanations and a small network that the tests of metrics share."""

import torch
from mmpretrain.structures import DataSample
from torch import nn

from mmkdx.metrics import Explained, ExplainedBatch


def rand(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def network(classes=5, seed=0):
    generator = torch.Generator().manual_seed(seed)
    net = nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(3), nn.Flatten()
    )
    net.append(nn.Linear(54, classes))
    for parameter in net.parameters():
        parameter.data.copy_(0.5 * torch.randn(parameter.shape, generator=generator))
    return net.eval()


def explained(model, images, maps, targets=None, **kwargs):
    @torch.no_grad()
    def predict(images):
        return model(images)

    logits = predict(images)
    targets = logits.argmax(1) if targets is None else torch.as_tensor(targets)
    kwargs.setdefault('explain', getattr(model, 'explain', lambda x, t: x.mean(1)))
    return Explained(maps, targets, logits, predict, **kwargs)


def batch_of(images, labels=None, mean=None, std=None, index=None, **models):
    samples = () if labels is None else [DataSample().set_gt_label(label) for label in labels]
    index = range(len(images)) if index is None else index
    return ExplainedBatch(images, index, models, samples, mean, std)


def scores(metric, *batches):
    for batch in batches:
        metric.process(batch)
    return metric.evaluate(10_000)


def values(metric, batch):
    scores(metric, batch)
    return metric.rows
