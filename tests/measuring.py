"""Batches of explanations, images with masks, and small networks that the tests of metrics share."""

import torch
from mmpretrain.structures import DataSample
from torch import nn
from torch.utils.data import Dataset

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


class Images(Dataset):
    """Noise with labels, masks and numbers; ``collate`` makes batches of it."""

    def __init__(self, count=12):
        generator = torch.Generator().manual_seed(0)
        self.images = torch.randn(count, 3, 16, 16, generator=generator)
        self.masks = torch.rand(count, 4, 4, generator=generator).gt(0.6).int()
        self.masks = self.masks.repeat_interleave(4, 1).repeat_interleave(4, 2)

    def __len__(self):
        return len(self.images)

    def __getitem__(self, i):
        sample = DataSample(metainfo=dict(sample_idx=i)).set_gt_label(i % 3)
        sample.gt_seg_map = self.masks[i]
        return dict(inputs=self.images[i], data_samples=sample)


def collate(items):
    return {
        'inputs': torch.stack([each['inputs'] for each in items]),
        'data_samples': [each['data_samples'] for each in items],
    }


def convolution(seed=0):
    """Three classes of 16 x 16 pixels, with maps of 4 x 4 positions."""
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(3, 6, 4, 4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 3)
    ).eval()
