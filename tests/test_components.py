"""The component experiment tells apart what a teacher knows, on data where that is known to us.

A class is a pair of patterns in noise, so classes are alike that share one of the two, and images
differ in how clear they are. Of the students, which have a seventh of the teacher's images, one should
learn the more, the more is left of the teacher's output.
"""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from tiny import tool
from torch import Tensor, nn

from mmkdx.distillation.teacher_target import TeacherTarget
from mmkdx.losses import KLDivLoss

pytestmark = pytest.mark.slow

TAU = 4.0
CLASSES = (5, 4)


def images(n: int, seed: int) -> tuple[Tensor, Tensor]:
    """Images of 16 x 16 pixels: noise with a pattern in each half, and their classes."""
    generator = torch.Generator().manual_seed(0)
    patterns = [torch.randn(k, 3, 4, 4, generator=generator).sign() for k in CLASSES]
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(n) % 20
    pictures = torch.randn(n, 3, 16, 16, generator=generator)
    clear = (0.5 + torch.rand(n, generator=generator))[:, None, None, None]
    sample, channel = torch.arange(n)[:, None, None, None], torch.arange(3)[:, None, None]
    kinds = labels // 4, labels % 4
    for table, kind, contrast, left in zip(patterns, kinds, (1.5, 1.3), (0, 8)):
        top = torch.randint(13, (n,), generator=generator)
        left = left + torch.randint(5, (n,), generator=generator)
        rows, columns = (start[:, None] + torch.arange(4) for start in (top, left))
        place = sample, channel, rows[:, None, :, None], columns[:, None, None, :]
        pictures[place] += contrast * clear * table[kind]
    return pictures, labels


def network(width: int) -> nn.Sequential:
    def layer(inputs, outputs):
        convolution = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
        return convolution, nn.BatchNorm2d(outputs), nn.ReLU()

    return nn.Sequential(
        *(*layer(3, width), nn.MaxPool2d(2), *layer(width, 2 * width), nn.MaxPool2d(2)),
        *(*layer(2 * width, 2 * width), nn.AdaptiveAvgPool2d(1), nn.Flatten()),
        nn.Linear(2 * width, 20),
    )


def train(model: nn.Module, pictures: Tensor, loss: Callable, epochs: int) -> nn.Module:
    """Trains with a loss of logits and of the images' positions."""
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.05)
    steps = epochs * len(pictures) // 50
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.01, total_steps=steps)
    for _ in range(epochs):
        for index in torch.randperm(len(pictures)).split(50):
            optimizer.zero_grad()
            loss(model(pictures[index]), index).backward()
            optimizer.step()
            schedule.step()
    return model.eval()


@torch.no_grad()
def accuracy(model: nn.Module, pictures: Tensor, labels: Tensor) -> float:
    return 100 * (model(pictures).argmax(1) == labels).double().mean().item()


def test_each_component_helps(tmp_path):
    test = images(1600, 3)
    many, labels = images(4000, 1)
    torch.manual_seed(0)
    teacher = train(network(32), many, lambda z, i: F.cross_entropy(z, labels[i]), 12)
    assert accuracy(teacher, *test) > 85
    few, labels = images(600, 2)
    with torch.no_grad():
        logits = teacher(few)
    file = tmp_path / 'statistics.pth'
    found = tool('analysis_tools/teacher_statistics').target_statistics([(logits, labels)], TAU)
    torch.save(dict(found, weight_similarity=None), file)

    def student(kind: str, seed: int) -> float:
        target, kd = TeacherTarget(kind, str(file), TAU), KLDivLoss(TAU)

        def loss(z, index):
            y = labels[index]
            return 0.1 * F.cross_entropy(z, y) + 0.9 * kd(z, target(logits[index], y))

        torch.manual_seed(seed)
        return accuracy(train(network(16), few, loss, 60), *test)

    kinds = ('meanmass', 'uniform', 'permute', 'classmean', 'full')
    values = {kind: [student(kind, seed) for seed in range(3)] for kind in kinds}
    means = {kind: sum(each) / 3 for kind, each in values.items()}
    for worse, better in zip(kinds, kinds[1:]):
        assert means[better] > means[worse] + 2, values
    # The headline, with each seed
    assert all(a > b + 10 for a, b in zip(values['full'], values['permute'])), values
