"""Every shipped config builds, takes one step on made-up images, and says what it claims."""

import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from one_step import FILE, build, made_up, step
from tiny import tool
from torch.utils._python_dispatch import TorchDispatchMode

from mmkdx.apis.dry_run import build_from_config, synthetic_batch

settle_weights = tool('misc/check_config').settle_weights

ROOT = Path(__file__).parents[1]
CONFIGS = sorted(
    path.relative_to(ROOT) for path in ROOT.glob('configs/*/*.py') if path.parent.name != '_base_'
)
#: The losses of each config's step; see one_step.py.
RECORDED = json.loads(FILE.read_text())

#: The configs of small transformers whose step is taken each time.
SHOWN = ('vit-micro_digits100', 'map_resnet18_vit-micro_digits100')
SHOWN += ('deit-hard_resnet18_deit-micro_digits100',)

#: Steps of several seconds that the same method with another network or other data shows.
LONG = (
    'e2kd_resnet34_resnet18_1xb64_in1k-200shot',
    'kd_resnet50_resnet18_waterbirds',
    'kd_resnet50_resnet50_petimages',
    'parts_protopnet_vgg19_cub',
    'proto2proto_vgg19_vgg16_cub',
    'protopnet_densenet161_cub',
    'protopnet_resnet152_cub',
    'protopnet_vgg16_cub',
    'protopnet_vgg19_cub',
)
#: More pairs and data of methods whose step another config shows. That they build checks their shapes.
MORE = [
    path
    for path in CONFIGS
    if (
        path.parent.name in ('cat_kd', 'exp_kd')
        and path.stem.endswith('cifar100')
        and 'resnet32x4_resnet8x4' not in path.stem
    )
    or (path.parent.name == 'unicam' and path.stem.endswith(('plantvillage', 'cifar10')))
    or (path.parent.name == 'fashion_mnist' and not path.stem.startswith(('cat_', 'proto2proto_')))
    or path.stem.endswith(('fashion1000-unicam', 'tiny_fashion'))
    or 'resnet101' in path.stem
    or path.stem.startswith('kd_swin')
    or path.parent.name == 'transformers'
    or ('it-micro' in path.stem and path.stem not in SHOWN)
    or path.stem.endswith(('_cars', '_unlabelled'))  # test_unlabelled.py trains a small one
    or path.stem.startswith(('ttm_', 'gkl_', 'icd_', 'wkd-l_resnet34'))
    or path.stem in LONG
]
#: Networks of other configs, with losses that test_configs_papers.py builds.
ALIKE = [
    path
    for path in CONFIGS
    if path.stem.startswith(('sdd-kd', 'sdd-nkd', 'wkd-f_', 'rld_', 'ikl_', 'vkd_', 'wttm-'))
    or path.stem == 'wkd-l_resnet32x4_resnet8x4_cifar100'
    or (path.stem.startswith('sdd-dkd_') and 'resnet8x4' not in path.stem)
]


#: Networks that take seconds to build.
LARGE = [
    path for path in MORE if path.parent.name == 'transformers' and 'deit-small' not in path.stem
]


class Waits(TorchDispatchMode):
    """Counts what makes a step wait for the device: reading values, or shapes that they decide."""

    OPS = ('_local_scalar_dense', 'nonzero', 'masked_select', '_unique', 'unique_')

    def __init__(self) -> None:
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = str(func).removeprefix('aten.')
        masks = name.startswith('index') and any(
            isinstance(each, torch.Tensor) and each.dtype == torch.bool
            for each in (args[1] if isinstance(args[1], (list, tuple)) else ())
        )
        if masks or name.startswith(self.OPS):
            self.seen.append(str(func))
        return func(*args, **(kwargs or {}))


#: What is read once a step from tensors that are on the CPU in any case, or once an epoch, or by
#: mmpretrain.
READ = {
    **dict.fromkeys(('crd', 'wttm-crd', 'ps-kd', 'ddgsd'), 'positions in the data set, on the CPU'),
    'ema': 'how often it was updated, a number on the CPU, by mmengine',
    'cs-kd': 'classes, but on a GPU in the first step alone',
    'ols': 'the epoch that its tables are of',
    'label-smoothing': "mmpretrain's LabelSmoothLoss looks at the labels",
}


def one_hot(target: torch.Tensor, num_classes: int) -> torch.Tensor:
    """As torch's on a GPU, which unlike that on a CPU does not look at the classes' range."""
    return torch.eye(num_classes, dtype=torch.long)[target]


def test_waits_are_seen():
    values = torch.arange(4.0)
    with Waits() as waits:
        values[0].item(), bool(values[1] > 0), values[values > 1], values.unique()
        values.add(1).sum().mul(2).clone()
    assert len(waits.seen) == 4


@pytest.mark.parametrize(
    'path',
    [pytest.param(path, marks=pytest.mark.slow if path in LARGE else ()) for path in MORE],
    ids=str,
)
def test_config_builds(path, monkeypatch):
    monkeypatch.chdir(ROOT)
    cfg = Config.fromfile(path)
    model = build_from_config(cfg)  # which looks at the shapes of images of one size
    if cfg.model.get('terms'):
        side = cfg.model.get('input_size')  # of data without a transform that sets it
        size = (side, side) if side else tuple(synthetic_batch(cfg)['inputs'][0].shape[1:])
        assert model._probed == {size}


@pytest.mark.parametrize(
    'path',
    [
        pytest.param(path, marks=pytest.mark.slow if path in MORE + ALIKE else ())
        for path in CONFIGS
    ],
    ids=str,
)
def test_config_takes_a_step(path, monkeypatch):
    """Without waiting for the device, and with the losses that it had when they were recorded."""
    monkeypatch.chdir(ROOT)
    cfg = Config.fromfile(path)
    model, batch = build(cfg), made_up(cfg)
    monkeypatch.setattr(F, 'one_hot', one_hot)
    with Waits() as waits:
        logged, unused = step(model, batch)
    assert not unused
    # Beside what is read in the end
    assert len(waits.seen) == len(logged) + (path.stem.partition('_')[0] in READ), waits.seen
    losses = {name: value for name, value in logged.items() if 'loss' in name}
    assert losses == pytest.approx(RECORDED[path.as_posix()], rel=1e-5)
    total = losses.pop('loss')
    assert 0 < total < float('inf')
    terms = cfg.model.get('terms', {})
    assert all(f'loss_{name}' in losses for name in terms)
    if terms:
        assert total == pytest.approx(sum(losses.values()), rel=1e-2)
        assert ('student.loss' in losses) == (cfg.model.get('student_weight', 1) > 0)


def test_every_config_has_recorded_losses():
    """``python tests/one_step.py CONFIG`` records those of a new one."""
    assert {path.as_posix() for path in CONFIGS} == set(RECORDED)


def test_every_config_is_in_its_readme():
    for path in CONFIGS:
        readme = (ROOT / path.parent / 'README.md').read_text()
        assert path.name in readme, f'{path} is not in its README.md'


def test_digits_teacher_is_where_students_look_for_it():
    teacher = Config.fromfile(ROOT / 'configs/digits/resnet18_digits.py')
    student = Config.fromfile(ROOT / 'configs/digits/kd_resnet18_resnet18-tiny_digits100.py')
    epochs = teacher.train_cfg.max_epochs
    assert student.model.teacher.checkpoint == f'work_dirs/resnet18_digits/epoch_{epochs}.pth'
    assert (ROOT / student.model.teacher.model.replace('mmkdx::', 'configs/')).is_file()


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


@pytest.mark.gpu
@pytest.mark.parametrize(
    'path', [path for path in CONFIGS if 'resnet32x4_resnet8x4_cifar100' in path.stem], ids=str
)
def test_training_does_not_wait_for_the_gpu(path, monkeypatch):
    monkeypatch.chdir(ROOT)
    cfg = Config.fromfile(path)
    model = build_from_config(cfg).cuda().train()
    for teacher in model.teachers:
        settle_weights(teacher, None)
    optim_wrapper = build_optim_wrapper(model, cfg.optim_wrapper)
    batch = model.data_preprocessor(synthetic_batch(cfg), True)
    model.data_preprocessor = torch.nn.Identity()
    model.data_preprocessor.forward = lambda batch, training: batch
    for _ in range(3):  # parts are built, and algorithms chosen
        model.train_step(batch, optim_wrapper)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode('error')
    try:
        for _ in range(3):
            model.train_step(batch, optim_wrapper)
    finally:
        torch.cuda.set_sync_debug_mode('default')
