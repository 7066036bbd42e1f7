"""What training at scale needs: precision, accumulation, checkpointed activations, fast input.

Several processes are in test_scale_two_processes.py.
"""

import copy
import inspect
import json
import re
from pathlib import Path

import cv2
import mmcv.image.io as mmcv_io
import mmengine.runner
import numpy as np
import pytest
import torch
from mmcv.transforms import LoadImageFromFile
from mmengine.config import Config
from mmengine.logging import MessageHub
from mmengine.optim import OptimWrapper, build_optim_wrapper
from mmengine.runner import Runner
from mmpretrain.apis import ModelHub
from mmpretrain.structures import DataSample
from tiny import batch, build, classifier, distiller, total

import mmkdx.losses
from mmkdx import compat
from mmkdx.apis.dry_run import build_from_config
from mmkdx.functional import ClassMaps
from mmkdx.registry import HOOKS, MODEL_WRAPPERS, TRANSFORMS

ROOT = Path(__file__).parents[1]


@pytest.fixture(autouse=True)
def hub(monkeypatch):
    """Keeps the counters of other runs out."""
    monkeypatch.setattr(MessageHub, '_instance_dict', type(MessageHub._instance_dict)())
    return MessageHub.get_current_instance()


def prototype_network(width: int) -> dict:
    """The config of a classifier with prototypes."""
    head = dict(num_classes=4, in_channels=width, prototypes_per_class=3, prototype_channels=5)
    return dict(
        type='ImageClassifier',
        backbone=dict(type='TinyBackbone', width=width),
        head=dict(type='ProtoPNetHead', **head),
    )


_BLOCKS = ['backbone.stem', 'backbone.body']
_PATCHES = ['head.add_on', 'head.prototype_layer']

#: A term with each loss; ``distill`` makes the distiller.
TERMS: dict[str, dict] = dict(
    ATLoss=dict(at='features'),
    BYOTLoss=dict(at=['backbone.stem', 'features', 'logits']),
    CATLoss=dict(at='cam'),
    CRDLoss=dict(at='embedding', num_samples=50, negatives=8),
    CSKDLoss=dict(at='logits'),
    CWTMLoss=dict(at='logits'),
    CellGramLoss=dict(at='cam', scales=(2,)),
    ConfidencePenaltyLoss=dict(at='logits'),
    CosineLoss=dict(at='embedding'),
    DDGSDLoss=dict(at=['embedding', 'logits'], mu=0.5),
    DISTLoss=dict(at='logits'),
    DKDLoss=dict(at='logits'),
    DMLLoss=dict(at='logits', peers=[classifier(6)]),
    E2KDLoss=dict(at=(['backbone.body', 'logits'],) * 2, size=4),
    ExpKDLoss=dict(at='cam'),
    ExplanationMapLoss=dict(at='logits', explainer='HiResCAM'),
    FitNetLoss=dict(at='backbone.body.0'),
    GKLLoss=dict(at='logits'),
    GlobalExplanationLoss=dict(at='prototypes'),
    IntrospectiveLoss=dict(at='cam', level='class'),
    KLDivLoss=dict(at='logits', tau=2),
    LabelLoss=dict(at='logits', label_smoothing=0.1),
    LogitStdLoss=dict(at='logits'),
    MSELoss=dict(at='features'),
    NKDLoss=dict(at='logits'),
    NSTLoss=dict(at='features'),
    OFDLoss=dict(at='backbone.body.1'),
    ONELoss=dict(at=['backbone.body:in', 'logits'], branch='backbone.body'),
    OnlineLabelSmoothingLoss=dict(at='logits'),
    PKTLoss=dict(at='embedding'),
    PSKDLoss=dict(at='logits', num_samples=50),
    PatchPrototypeLoss=dict(at=[_PATCHES] * 2),
    RKDLoss=dict(at='embedding'),
    RLDLoss=dict(at='logits'),
    ReviewKDLoss=dict(at=([*_BLOCKS, 'embedding'],) * 2),
    SDDLoss=dict(at='cam', scales=(1, 2)),
    SPLoss=dict(at='features'),
    TfKDRegLoss=dict(at='logits'),
    VIDLoss=dict(at='features'),
    VkDLoss=dict(at='features'),
    WKDFeatureLoss=dict(at='features'),
    WKDLogitLoss=dict(at='cam'),
    WTTMLoss=dict(at='logits'),
)


def distill(name: str, dtype: str | None = None) -> torch.nn.Module:
    """A distiller with one loss, whose name in ``terms`` is ``t``."""
    torch.manual_seed(0)
    network = prototype_network if 'roto' in str(TERMS[name]['at']) else classifier
    model = distiller(
        dict(t=dict(TERMS[name], type=name)),
        student=network(4),
        teacher=dict(model=network(8), dtype=dtype),
    ).train()
    if name == 'OnlineLabelSmoothingLoss':
        hub = MessageHub.get_current_instance()
        hub.update_info('epoch', 0)
        model(*pairs(), 'loss')  # it learns from the epoch before
        hub.update_info('epoch', 1)
    return model


def pairs(n: int = 8) -> tuple[torch.Tensor, list[DataSample]]:
    """Images in pairs, of one class and one position in the data set, as some losses want them."""
    images, _ = batch(n)
    samples = [DataSample().set_gt_label(i // 2 % 4) for i in range(n)]
    for i, sample in enumerate(samples):
        sample.set_metainfo(dict(sample_idx=i // 2))
    return images, samples


def step(model: torch.nn.Module, dtype: torch.dtype | None = None) -> tuple[float, torch.Tensor]:
    """The term's loss and all gradients of the student, with autocast to a dtype."""
    torch.manual_seed(1)
    model = copy.deepcopy(model)
    with torch.autocast('cpu', dtype, enabled=dtype is not None):
        losses = model(*pairs(), 'loss')
    assert losses['loss_t'].dtype == torch.float32
    total(losses).backward()
    gradients = [parameter.grad for parameter in model.student.parameters()]
    assert {each.dtype for each in gradients} == {torch.float32}
    return losses['loss_t'].item(), torch.cat([each.flatten() for each in gradients])


# Precision


def test_the_table_has_every_loss():
    assert set(TERMS) == set(mmkdx.losses.__all__) - {'DistillLoss'}


@pytest.mark.parametrize('name', TERMS)
def test_half_precision(name):
    """Autocast and a teacher in bf16 change a step by no more than the rounding of the networks."""
    model = distill(name)
    loss, gradients = step(model)
    assert loss
    # Rounding is 2^-8 and 2^-11
    for dtype, tolerance, angle in ((torch.bfloat16, 2e-2, 8e-3), (torch.float16, 3e-3, 3e-3)):
        half, rounded = step(model, dtype)
        assert half == pytest.approx(loss, rel=tolerance), dtype
        assert rounded.isfinite().all()
        assert torch.cosine_similarity(gradients, rounded, dim=0) > 1 - angle, dtype
        # The networks did run in it: fp32 would be nearer
        assert not torch.equal(gradients, rounded)
    half, rounded = step(distill(name, 'bfloat16'))
    assert half == pytest.approx(loss, rel=2e-2)
    assert rounded.isfinite().all()


@pytest.mark.parametrize(
    'name',
    [
        name
        for name in TERMS
        # One takes gradients through the teacher, which a cast would cut off
        if name != 'E2KDLoss' and 'teacher' in getattr(mmkdx.losses, name).needs
    ],
)
def test_the_precision_of_a_loss_is_not_its_teachers(name):
    """What a teacher says in bf16 is read as exactly these numbers in fp32."""
    model = distill(name, 'bfloat16')
    given = []

    def full(_, inputs, values):
        for tap, value in values.items():
            maps = isinstance(value, ClassMaps)
            parts = (value.features, value.weight, value.bias) if maps else (value,)
            given.extend(part.dtype for part in parts)
            values[tap] = ClassMaps(*(p.float() for p in parts)) if maps else value.float()

    half = step(model)
    model.teachers[0].register_forward_hook(full)
    loss, gradients = step(model)
    assert torch.bfloat16 in given  # distances to prototypes are in fp32 anyway
    assert half[0] == loss
    assert torch.equal(half[1], gradients)


def test_amp_says_that_it_needs_a_device():
    optim = dict(type='AmpOptimWrapper', dtype='bfloat16', optimizer=dict(type='SGD', lr=0.1))
    with pytest.raises(AssertionError, match='only available training on gpu'):
        build_optim_wrapper(distill('KLDivLoss'), optim)


# Gradient accumulation


def kd_and_cat(**kwargs) -> torch.nn.Module:
    """A distiller without batch norm, the same each time."""
    torch.manual_seed(0)
    terms = dict(
        kd=dict(type='KLDivLoss', at='logits', tau=2),
        cat=dict(type='CATLoss', at='cam'),
    )
    students = dict(student=classifier(4, norm=False), teacher=dict(model=classifier(8)))
    return distiller(terms, **{**students, **kwargs}).train()


def train_steps(model, batches, **optim) -> dict:
    """The student after the batches."""
    optim = OptimWrapper(torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9), **optim)
    optim.initialize_count_status(model, 0, len(batches))
    for images, samples in batches:
        model.train_step(dict(inputs=images, data_samples=samples), optim)
    return model.student.state_dict()


def test_accumulated_halves_are_one_batch():
    whole = [batch(8, seed=seed) for seed in range(3)]
    halves = [
        (images[part], samples[part])
        for images, samples in whole
        for part in (slice(4), slice(4, 8))
    ]
    start = kd_and_cat().student.state_dict()
    one, two = (
        train_steps(kd_and_cat(), whole),
        train_steps(kd_and_cat(), halves, accumulative_counts=2),
    )
    for key, value in one.items():
        assert (value - start[key]).abs().max() > 1e-3
        torch.testing.assert_close(two[key], value, rtol=1e-5, atol=1e-7)


def run_config(work_dir: Path, **changes) -> Config:
    """An epoch of four iterations of three digits each."""
    student = dict(
        classifier(4, classes=10, norm=False),
        data_preprocessor=dict(num_classes=10, mean=[78.0] * 3, std=[84.0] * 3),
    )
    terms = dict(
        kd=dict(
            type='KLDivLoss',
            at='logits',
            teacher=1,
            schedule=dict(type='linear', end=4, by_epoch=False),
        ),
        fit=dict(type='MSELoss', at='backbone.body.0'),
    )
    config = dict(
        default_scope='mmkdx',
        work_dir=str(work_dir),
        experiment_name=work_dir.name,
        custom_imports=dict(imports=['tiny']),
        model=dict(
            type='Distiller',
            student=student,
            input_size=32,
            terms=terms,
            teacher=[
                dict(model=classifier(8, classes=10), checkpoint=str(work_dir) + '.pth'),
                dict(type='EMATeacher', momentum=0.5),
            ],
        ),
        train_dataloader=dict(
            batch_size=3,
            num_workers=0,
            dataset=dict(type='Digits', indices=12, pipeline=[dict(type='PackInputs')]),
            sampler=dict(type='DefaultSampler', shuffle=False),
        ),
        train_cfg=dict(by_epoch=True, max_epochs=1),
        optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.1)),
        default_hooks=dict(logger=dict(type='LoggerHook', interval=1)),
        randomness=dict(seed=0),
    )
    return Config({**config, **changes})


def run(work_dir: Path, **changes) -> tuple[Runner, list[dict]]:
    """A run and what it logged at each iteration."""
    torch.manual_seed(0)
    torch.save(build(classifier(8, classes=10)).state_dict(), str(work_dir) + '.pth')
    runner = Runner.from_cfg(run_config(work_dir, **changes))
    runner.train()
    (path,) = work_dir.glob('*/vis_data/scalars.json')
    return runner, [json.loads(line) for line in path.read_text().splitlines()]


def test_schedules_and_averages_count_iterations_under_accumulation(tmp_path):
    """Not the optimizer's steps, of which there are two here."""
    optim = dict(optimizer=dict(type='SGD', lr=0.5), accumulative_counts=2)
    runner, logged = run(tmp_path / 'accumulated', optim_wrapper=optim)
    teacher = runner.model.teachers[1]
    assert int(teacher.average.steps) == 4
    kd = [line['loss_kd'] for line in logged]
    # After the first two iterations the student is still its own average, and from then on it is not
    assert kd[0] == 0 and kd[1] < 1e-9 and min(kd[2:]) > 1e-7
    assert [runner.model.terms.kd.weight.schedule.at(i) for i in range(4)] == pytest.approx(
        [0, 1 / 3, 2 / 3, 1]
    )


# Activation checkpointing

CHECKPOINTED = [
    ['student.backbone.body'],  # taps inside, at and behind it
    ['student.backbone.stem'],  # whose input, the images, has no gradient
    ['student.backbone.stem', 'student.backbone.body'],
    ['student.backbone'],
    ['student.backbone', 'student.backbone.body'],
]


def all_kinds_of_taps(norm: bool = True, slope: bool = True) -> torch.nn.Module:
    """A distiller with taps before, inside, at and after a block, one of them copied."""
    torch.manual_seed(0)
    terms = dict(
        before=dict(type='ATLoss', at='backbone.stem'),
        inside=dict(type='MSELoss', at='backbone.body.0'),
        copied=dict(type='OFDLoss', at='backbone.body.1' if norm else 'backbone.body.0'),
        result=dict(type='CATLoss', at='cam'),
        after=dict(type='KLDivLoss', at='logits'),
    )
    if (
        slope
    ):  # a gradient of the logits by what is before the block, which is computed again for it
        terms['slope'] = dict(type='E2KDLoss', at=(['backbone.stem', 'logits'],) * 2, size=4)
    student = classifier(4, norm=norm, drop=0.3)
    return distiller(terms, student=student).train()


def losses_and_gradients(model, size: int = 8) -> tuple[dict, dict]:
    torch.manual_seed(1)  # dropout
    losses = model(*batch(size=size), 'loss')
    total(losses).backward()
    return losses, {name: each.grad for name, each in model.named_parameters()}


@pytest.mark.parametrize('modules', CHECKPOINTED, ids=' '.join)
@pytest.mark.parametrize('norm', [True, False])
def test_checkpointed_activations_change_nothing(modules, norm):
    losses, gradients = losses_and_gradients(all_kinds_of_taps(norm))
    model = all_kinds_of_taps(norm)
    mmengine.runner.turn_on_activation_checkpointing(model, modules)
    got = losses_and_gradients(model)
    assert got[0] == losses
    for name, value in gradients.items():
        torch.testing.assert_close(got[1][name], value, rtol=1e-6, atol=1e-8, msg=name)


def test_what_is_checkpointed_is_kept_no_more():
    def kept(modules):
        model, bytes_kept = all_kinds_of_taps(), []
        mmengine.runner.turn_on_activation_checkpointing(model, modules)
        with torch.autograd.graph.saved_tensors_hooks(
            lambda tensor: bytes_kept.append(tensor.nbytes) or tensor, lambda tensor: tensor
        ):
            model.student(torch.randn(4, 3, 32, 32))
        return sum(bytes_kept)

    assert kept(['student.backbone']) < 0.3 * kept([])


def test_checkpointed_batch_norm_counts_twice():
    """As everywhere with torch's checkpoints; the guide says so."""
    model = all_kinds_of_taps(slope=False)
    mmengine.runner.turn_on_activation_checkpointing(model, 'student.backbone.body')
    losses_and_gradients(model)
    backbone = model.student.backbone
    assert (backbone.stem[1].num_batches_tracked, backbone.body[1].num_batches_tracked) == (1, 2)


def test_other_sizes_autocast_and_copies_of_a_checkpointed_model():
    plain, model = all_kinds_of_taps(False), all_kinds_of_taps(False)
    mmengine.runner.turn_on_activation_checkpointing(model, ['student.backbone'])
    assert losses_and_gradients(model, size=16)[0] == losses_and_gradients(plain, size=16)[0]
    with torch.autocast('cpu', torch.bfloat16):
        assert losses_and_gradients(model)[0] == losses_and_gradients(plain)[0]
    other = copy.deepcopy(model)  # with weights of its own, and not the original's forward
    for part in (other.student, plain.student):
        for parameter in part.parameters():
            torch.nn.init.constant_(parameter, 0.1)
    images, _ = batch()
    assert torch.equal(other.eval()(images), plain.eval()(images))
    assert not torch.equal(model.eval()(images), plain(images))


@pytest.mark.slow
def test_checkpointing_by_a_config(tmp_path):
    """In mmengine's Runner."""
    plain = run(tmp_path / 'plain')
    checkpointed = run(tmp_path / 'checkpointed', activation_checkpointing=['student.backbone'])
    for a, b in zip(plain[1], checkpointed[1], strict=True):
        assert a['loss'] == b['loss']
    for key, value in plain[0].model.state_dict().items():
        assert torch.equal(value, checkpointed[0].model.state_dict()[key]), key


def test_a_name_that_is_not_checkpointed():
    sentence = (
        "activation_checkpointing: the model has no module 'backbone'; .* begin with 'student.'"
    )
    with pytest.raises(ValueError, match=sentence):
        mmengine.runner.turn_on_activation_checkpointing(all_kinds_of_taps(), 'backbone')


def test_reentrant_checkpoints_are_refused_where_they_cut_a_tap_off():
    """As ``with_cp`` of mmpretrain's backbones makes them."""
    model = all_kinds_of_taps(slope=False)
    block = model.student.backbone.body
    forward = block.forward
    block.forward = lambda x: torch.utils.checkpoint.checkpoint(forward, x, use_reentrant=True)
    with pytest.raises(
        ValueError, match='terms.inside: no gradient flows from it into the student'
    ):
        model(*batch(), 'loss')


def test_a_mended_mmengine_is_left_alone(monkeypatch):
    def theirs(model, modules):
        """With use_reentrant=False."""

    theirs.__name__ = 'turn_on_activation_checkpointing'
    monkeypatch.setattr(compat, 'turn_on_activation_checkpointing', theirs)
    monkeypatch.setattr(mmengine.runner, 'turn_on_activation_checkpointing', theirs)
    monkeypatch.setattr(inspect, 'getsource', lambda _: 'use_reentrant=False')
    compat._checkpoint_activations_without_reentry()
    assert mmengine.runner.turn_on_activation_checkpointing is theirs
    monkeypatch.setattr(inspect, 'getsource', lambda _: 'checkpoint(forward, *args)')
    compat._checkpoint_activations_without_reentry()
    ours = mmengine.runner.turn_on_activation_checkpointing
    assert ours is compat._turn_on_activation_checkpointing


# Fused optimizers


@pytest.mark.parametrize(
    'optimizer',
    [
        dict(type='SGD', lr=0.1, momentum=0.9, weight_decay=1e-3),
        dict(type='AdamW', lr=0.01, weight_decay=0.05),
    ],
    ids=lambda optimizer: optimizer['type'],
)
def test_fused_optimizers(optimizer):
    states = []
    for fused in (False, True):
        model = kd_and_cat()
        config = dict(
            optimizer=dict(optimizer, fused=fused),
            clip_grad=dict(max_norm=1.0),
            paramwise_cfg=dict(bias_decay_mult=0.0),
        )
        optim = build_optim_wrapper(model, config)
        assert optim.optimizer.param_groups[0]['fused'] is fused
        for seed in range(3):
            images, samples = batch(seed=seed)
            model.train_step(dict(inputs=images, data_samples=samples), optim)
        states.append(model.student.state_dict())
    for key, value in states[0].items():
        torch.testing.assert_close(states[1][key], value, rtol=1e-5, atol=1e-7)


# Input


@pytest.fixture
def picture(tmp_path):
    image = np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    cv2.imwrite(str(tmp_path / 'a.jpg'), image)
    return dict(img_path=str(tmp_path / 'a.jpg'))


def test_turbojpeg_that_is_not_installed_is_said(picture, monkeypatch):
    monkeypatch.setattr(mmcv_io, 'TurboJPEG', None)
    monkeypatch.setattr(mmcv_io, 'jpeg', None)
    compat._open_turbojpeg_when_it_is_used()
    with pytest.raises(ImportError, match="imdecode_backend='turbojpeg' needs the package PyTurbo"):
        LoadImageFromFile(imdecode_backend='turbojpeg')(picture)


def test_turbojpeg_is_opened_once_by_the_first_image(picture, monkeypatch):
    opened = []

    class TurboJPEG:
        def __init__(self):
            opened.append(self)

        def decode(self, content, flag):
            assert flag == 'BGR'
            return cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR)

    for name, value in dict(TurboJPEG=TurboJPEG, jpeg=None, TJPF_BGR='BGR').items():
        monkeypatch.setattr(mmcv_io, name, value, raising=False)
    compat._open_turbojpeg_when_it_is_used()
    assert not opened
    load = LoadImageFromFile(imdecode_backend='turbojpeg')
    image, again = load(dict(picture))['img'], load(dict(picture))['img']
    assert len(opened) == 1 and mmcv_io.jpeg is opened[0]
    assert np.array_equal(image, LoadImageFromFile()(dict(picture))['img'])
    assert np.array_equal(image, again)
    compat._open_turbojpeg_when_it_is_used()
    assert mmcv_io.jpeg is opened[0]


# The guide

GUIDE = (ROOT / 'docs/en/user_guides/scale.md').read_text()


def test_the_guides_configs_are_taken():
    """All of its Python, on top of the config that it begins with."""
    cfg = Config.fromfile(ROOT / 'configs/kd/kd_resnet34_resnet18_8xb32_in1k.py')
    assert str(Path(cfg.filename).relative_to(ROOT)) in GUIDE
    hooks = []
    for code in re.findall('```python\n(.*?)```', GUIDE, re.DOTALL):
        settings = Config.fromstring(code, '.py').to_dict()
        hooks += settings.pop('custom_hooks', [])
        settings.pop('train_pipeline', None)
        if 'strategy' in settings:  # tests/test_distillation/test_sharded.py
            continue
        cfg.merge_from_dict(settings)
    assert [HOOKS.build(hook).__class__.__name__ for hook in hooks] == [
        'EpochSeedHook',
        'GradientCompressionHook',
    ]
    assert cfg.model.teacher.model == 'resnet34_8xb32_in1k' and cfg.env_cfg.cudnn_benchmark
    torch.manual_seed(0)
    model = build_from_config(cfg)
    assert model.teachers[0].dtype == torch.bfloat16
    mmengine.runner.turn_on_activation_checkpointing(model, cfg.activation_checkpointing)
    optim = cfg.optim_wrapper.to_dict()
    assert optim.pop('type') == 'AmpOptimWrapper' and optim.pop('dtype') == 'bfloat16'
    optim = build_optim_wrapper(model, optim)
    assert optim.optimizer.defaults['fused'] and optim._accumulative_counts == 4
    transforms = [TRANSFORMS.build(each) for each in cfg.train_dataloader.dataset.pipeline]
    assert transforms[0].imdecode_backend == 'turbojpeg'
    loader = cfg.train_dataloader.to_dict()
    loader.pop('collate_fn', None)  # a name, of which the Runner makes a function
    loader.update(dataset=[1], num_workers=1)
    del loader['sampler']
    assert torch.utils.data.DataLoader(**loader).prefetch_factor == 4
    wrapper = cfg.model_wrapper_cfg.to_dict()
    wrapper = MODEL_WRAPPERS.get(wrapper.pop('type')), wrapper
    inspect.signature(wrapper[0].__mro__[1]).bind(model, **wrapper[1])


def multiply_adds(model: str) -> float:
    """In the metafiles of mmpretrain, in G."""
    return ModelHub.get(model).metadata.flops / 1e9


@pytest.mark.parametrize(
    'row, teacher, student',
    [
        ('ResNet-34 → ResNet-18', 'resnet34_8xb32_in1k', 'resnet18_8xb32_in1k'),
        ('ResNet-50 → ResNet-18', 'resnet50_8xb32_in1k', 'resnet18_8xb32_in1k'),
        ('Swin-B → Swin-T', 'swin-base_16xb64_in1k', 'swin-tiny_16xb64_in1k'),
        ('ResNet-152 → ResNet-18', 'resnet152_8xb32_in1k', 'resnet18_8xb32_in1k'),
        ('ResNet-50 → MobileNetV2', 'resnet50_8xb32_in1k', 'mobilenet-v2_8xb32_in1k'),
    ],
)
def test_factors_of_the_guide(row, teacher, student):
    line = next(line for line in GUIDE.splitlines() if line.startswith(f'| {row} |'))
    cells = [float(cell) for cell in line.strip('|').split('|')[1:]]
    teacher, student = multiply_adds(teacher), multiply_adds(student)
    assert cells == [teacher, student, pytest.approx(1 + teacher / (3 * student), abs=0.005)]


def test_example_of_the_guide():
    n, processes, batch_size, rate = 1_281_167, 8, 256, 40e12
    student = batch_size * 3 * 2 * multiply_adds('resnet18_8xb32_in1k') * 1e9 / rate
    teacher = batch_size * 2 * multiply_adds('resnet34_8xb32_in1k') * 1e9 / rate
    size = 4 * ModelHub.get('resnet18_8xb32_in1k').metadata.parameters
    sent = size * 2 * (processes - 1) / processes
    steps = n / (processes * batch_size)
    data = batch_size / 800, batch_size / 2400
    for value, unit in [
        *[(1e3 * seconds, 'ms') for seconds in (student, teacher, student + teacher)],
        *[(1e3 * sent / speed, 'ms') for speed in (1e10, 3.1e9)],
        *[(size / 1e6, 'MB'), (sent / 1e6, 'MB'), (1e3 * data[1], 'ms'), (steps, 'steps')],
        *[(steps * max(seconds, student + teacher), 's') for seconds in data],
    ]:
        assert f'{value:.1f} {unit}' in GUIDE, (value, unit)
    for gpus in (1, 8, 64):
        steps = n / (gpus * batch_size)
        computed, sent = steps * (student + teacher), steps * size * 2 * (gpus - 1) / gpus / 1e10
        cells = f'{steps:.1f} | {computed:.1f} s | {sent:.1f} s | {computed + sent:.1f} s'
        assert f'| {gpus} | {cells} |' in GUIDE
