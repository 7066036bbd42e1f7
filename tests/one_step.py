"""Records the losses of one training step of every shipped config, which a change must not alter.

``python tests/one_step.py [CONFIG ...]`` writes them into ``tests/data/one_step_losses.json``, and
``test_configs.py`` compares. Weights are drawn by their names and steps run in double precision, so
neither the order in which parts are built nor the order of a sum changes a loss.
"""

from __future__ import annotations

import json
import math
import os
import sys
import zlib
from pathlib import Path

import torch
from mmengine.config import Config
from mmengine.runner import set_random_seed
from torch import nn

from mmkdx.apis.dry_run import build_from_config, first_dataloader, one_step, synthetic_batch
from mmkdx.datasets.wrappers import config_class_names
from mmkdx.distillation import Teacher

ROOT = Path(__file__).parents[1]
FILE = ROOT / 'tests/data/one_step_losses.json'


def draw_weights(model: nn.Module, owner: str) -> None:
    """Draws weights and tables from generators that their names seed; constants (norms, zeros) stay."""

    def constant(values: torch.Tensor) -> bool:
        return values.numel() > 1 and bool((values == values.flatten()[0]).all())

    tables = [
        (name, table)
        for name, table in model.named_buffers()
        if table.dim() == 2 and table.is_floating_point() and not constant(table)
    ]
    with torch.no_grad():
        for name, weight in [*model.named_parameters(), *tables]:
            if weight.dim() < 2 and constant(weight):
                continue
            seed = zlib.crc32(f'{owner}.{name}'.encode())
            values = torch.randn(
                weight.shape,
                generator=torch.Generator().manual_seed(seed),
                dtype=torch.double,
            )
            fan_in = weight[0].numel() if weight.dim() > 1 else 100
            weight.copy_(values * math.sqrt(1 / fan_in))


def build(cfg: Config) -> nn.Module:
    """A config's model with weights drawn by their names, in double precision."""
    set_random_seed(0)
    model = build_from_config(cfg)
    draw_weights(model, 'model')
    for i, teacher in enumerate(getattr(model, 'teachers', ())):
        for part in teacher.modules():
            if isinstance(part, Teacher):
                part.keep_random_weights(config_class_names(first_dataloader(cfg).dataset))
        draw_weights(teacher, f'teacher{i}')
    if hasattr(model, 'probe'):
        # Fake images are in single precision
        model.probe(synthetic_batch(cfg)['inputs'][0].shape[1:])
    return model.double()


def made_up(cfg: Config) -> dict:
    """The same made-up batch at each call."""
    set_random_seed(0)
    return synthetic_batch(cfg)


def step(model: nn.Module, batch: dict) -> tuple[dict[str, float], list[str]]:
    """One step of such a model on such a batch; see ``one_step``."""
    model.data_preprocessor.register_forward_hook(
        lambda _, args, data: {**data, 'inputs': data['inputs'].double()}
    )
    torch.manual_seed(0)
    return one_step(model, batch)


def record(paths: list[Path]) -> dict[str, dict[str, float]]:
    """The losses of configs, by their paths below the repository."""
    recorded = {}
    for path in paths:
        cfg = Config.fromfile(path)
        logged, _ = step(build(cfg), made_up(cfg))
        recorded[path.as_posix()] = {k: v for k, v in logged.items() if 'loss' in k}
        print(path, recorded[path.as_posix()], flush=True)
    return recorded


if __name__ == '__main__':
    os.chdir(ROOT)
    torch.set_num_threads(1)
    given = [Path(each) for each in sys.argv[1:]]
    shipped = sorted(
        path.relative_to(ROOT) for path in ROOT.glob('configs/*/*.py') if path.parts[-2] != '_base_'
    )
    old = json.loads(FILE.read_text()) if given and FILE.is_file() else {}
    FILE.parent.mkdir(exist_ok=True)
    FILE.write_text(
        json.dumps({**old, **record(given or shipped)}, indent=1, sort_keys=True) + '\n'
    )
