"""Every shipped config builds, takes one step on made-up images, and says what it claims."""

from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from tiny import tool

from mmkdx.apis.dry_run import build_from_config, one_step, synthetic_batch
from mmkdx.distillation import Teacher

settle_weights = tool('misc/check_config').settle_weights

ROOT = Path(__file__).parents[1]
CONFIGS = sorted(
    path.relative_to(ROOT) for path in ROOT.glob('configs/*/*.py') if path.parent.name != '_base_'
)


@pytest.mark.parametrize('path', CONFIGS, ids=str)
def test_config_takes_a_step(path, monkeypatch):
    """As tools/misc/check_config.py does, without its tables."""
    monkeypatch.chdir(ROOT)
    cfg = Config.fromfile(path)
    torch.manual_seed(0)
    model = build_from_config(cfg)
    for teacher in getattr(model, 'teachers', ()):
        for member in teacher.modules():
            if isinstance(member, Teacher):
                settle_weights(member)
    logged, unused = one_step(model, synthetic_batch(cfg))
    assert not unused
    losses = {name: value for name, value in logged.items() if 'loss' in name}
    total = losses.pop('loss')
    assert 0 < total < float('inf')
    terms = cfg.model.get('terms', {})
    assert all(f'loss_{name}' in losses for name in terms)
    if terms:
        assert total == pytest.approx(sum(losses.values()), rel=1e-2)
        assert ('student.loss' in losses) == (cfg.model.get('student_weight', 1) > 0)


def test_every_config_is_in_its_readme():
    for path in CONFIGS:
        readme = (ROOT / path.parent / 'README.md').read_text()
        assert path.name in readme, f'{path} is not in its README.md'


def test_digits_teacher_is_where_students_look_for_it():
    teacher = Config.fromfile(ROOT / 'configs/digits/resnet18_digits.py')
    student = Config.fromfile(ROOT / 'configs/digits/kd_resnet18_resnet18-tiny_digits100.py')
    epochs = teacher.train_cfg.max_epochs
    assert student.model.teacher.checkpoint == f'work_dirs/resnet18_digits/epoch_{epochs}.pth'
    assert (ROOT / student.model.teacher.model).is_file()


@pytest.mark.parametrize(
    'name, weight, normalize',
    [
        ('cat_resnet34_resnet18_8xb32_in1k', 0.5, False),
        ('cat_resnet50_mobilenet-v2_8xb32_in1k', 10.0, True),
    ],
)
def test_cat_kd_has_the_papers_values(name, weight, normalize):
    term = Config.fromfile(ROOT / f'configs/cat_kd/{name}.py').model.terms.cat
    assert (term.resolution, term.weight, term.normalize) == (2, weight, normalize)


def test_imagenet_schedule_is_that_of_the_cat_kd_paper_at_half_the_batch():
    cfg = Config.fromfile(ROOT / 'configs/cat_kd/cat_resnet34_resnet18_8xb32_in1k.py')
    assert (
        cfg.optim_wrapper.optimizer.lr == 0.1 and cfg.optim_wrapper.optimizer.weight_decay == 1e-4
    )
    assert cfg.param_scheduler.milestones == [30, 60, 90] and cfg.train_cfg.max_epochs == 100
