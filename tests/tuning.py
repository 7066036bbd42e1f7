"""A distillation on digits whose test data do not exist, for the tests of the search of weights."""

from pathlib import Path

import torch
from mmengine.config import Config

from mmkdx.apis.dry_run import build_from_config

ROOT = Path(__file__).parents[1]
BASE = 'configs/digits/resnet18-tiny_digits100.py'

CONFIG = """
_base_ = ['{root}/configs/digits/kd_resnet18_resnet18-tiny_digits100.py']
model = dict(
    teacher=dict(_delete_=True, model='{root}/{base}', checkpoint='{folder}/teacher.pth')
)
train_dataloader = dict(dataset=dict(times=1, dataset=dict(indices=60)))
train_cfg = dict(max_epochs=1)
missing = dict(_delete_=True, type='NoSuchDataSet', pipeline=[dict(type='PackInputs')])
val_dataloader = dict(dataset=missing)
test_dataloader = dict(dataset=missing)
"""


def write_config(folder: Path, more: str = '') -> Path:
    """Writes the config, with a teacher's weights beside it."""
    teacher = build_from_config(Config.fromfile(ROOT / BASE))
    torch.save(dict(state_dict=teacher.state_dict()), folder / 'teacher.pth')
    path = folder / 'kd.py'
    path.write_text(CONFIG.format(root=ROOT, base=BASE, folder=folder) + more)
    return path
