"""Distilling an embedding from a folder of images without labels, by the shipped config made small."""

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.runner import Runner
from resumable import losses
from tiny import distiller, tool

from mmkdx.apis.dry_run import build_from_config, one_step, synthetic_batch
from mmkdx.evaluation import ExplanationEvaluator
from mmkdx.evaluation.subjects import build_explainers, find_subjects

timm = pytest.importorskip('timm')

ROOT = Path(__file__).parents[1]
CONFIG = ROOT / 'configs/kd/embedding_dinov2-small_mobilenetv3_unlabelled.py'
VIT = dict(img_size=32, depth=1, num_classes=0)
PIPELINE = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=(32, 32)),  # as they are; the dry run makes larger ones up
    dict(type='PackInputs'),
]


def network(name='test_resnet', **arguments):
    """A teacher's or student's network, in timm's own class."""
    torch.manual_seed(5)
    return timm.create_model(name, **arguments)


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """Six images of noise, some of them in folders, beside a file that is none."""
    folder = tmp_path_factory.mktemp('data')
    random = np.random.default_rng(0)
    for i in range(6):
        path = folder / ('deep/er' if i % 2 else '.') / f'{i}.png'
        path.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(path), random.integers(0, 256, (32, 32, 3), dtype=np.uint8))
    (folder / 'notes.txt').write_text('no image')
    torch.save(network('test_vit', **VIT).state_dict(), folder / 'teacher.pth')
    return folder


def config_of(folder, work_dir, student=0, **changes):
    """Three epochs of one step over all images, without augmentation."""
    data = dict(type='UnlabelledImages', data_root=str(folder), pipeline=PIPELINE)
    loader = dict(batch_size=6, num_workers=0, persistent_workers=False, dataset=data)
    cfg = Config.fromfile(CONFIG)
    cfg.merge_from_dict(
        dict(
            model=dict(
                input_size=32,
                student=dict(type='timm::test_resnet', num_classes=student),
                teacher=dict(
                    model=dict(type='timm::test_vit', **VIT),
                    pretrained=False,
                    checkpoint=str(folder / 'teacher.pth'),
                ),
            ),
            train_dataloader=loader,
            train_cfg=dict(max_epochs=3),
            default_hooks=dict(logger=dict(interval=1)),
            log_processor=dict(window_size=1),  # no running means
            work_dir=str(work_dir),
            randomness=dict(seed=1),
            experiment_name=work_dir.name,
        )
    )
    cfg.train_dataloader.dataset.pipeline = PIPELINE
    cfg.param_scheduler = []
    for key, value in changes.items():
        cfg[key] = value
    return cfg


@pytest.fixture(scope='module')
def whole(folder, tmp_path_factory):
    """A run, and its runner."""
    work_dir = tmp_path_factory.mktemp('whole')
    runner = Runner.from_cfg(config_of(folder, work_dir))
    runner.train()
    return work_dir, runner


def embeddings(folder, weights, kind):
    """What a network of timm says of all images, normalised by hand."""
    images = [cv2.imread(str(path))[..., ::-1].copy() for path in sorted(folder.rglob('*.png'))]
    images = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float() / 255
    facts = kind.default_cfg
    mean, std = (torch.tensor(facts[key])[:, None, None] for key in ('mean', 'std'))
    kind.load_state_dict(weights)  # every tensor, by the library's own names
    return kind((images - mean) / std)


@pytest.mark.parametrize('epoch', [1, 2])
def test_the_loss_of_each_step_is_one_minus_the_mean_cosine(folder, whole, epoch):
    work_dir, runner = whole
    state = torch.load(work_dir / f'epoch_{epoch}.pth', weights_only=False)['state_dict']
    own = {key: value for key, value in state.items() if not key.startswith('distill.')}
    prefix = 'distill.terms.embedding.adapter.project.linear.parametrizations.weight.'
    assert set(state) - set(own) == {f'{prefix}original', f'{prefix}0.base'}
    teacher = network('test_vit', **VIT).eval()
    with torch.no_grad():
        student = embeddings(folder, own, network(num_classes=0).train())
        goal = embeddings(folder, torch.load(folder / 'teacher.pth'), teacher)
    # The Cayley transform, by numpy: (1 - S / 2)^-1 (1 + S / 2), S of the part below the diagonal
    lower = np.zeros((96, 96))
    lower[:, :64] = np.tril(state[f'{prefix}original'].double().numpy().T)
    skew, one = (lower - lower.T) / 2, np.eye(96)
    weight = state[f'{prefix}0.base'].double().numpy() @ np.linalg.solve(one - skew, one + skew)
    projected, goal = student.double().numpy() @ weight[:, :64], goal.double().numpy()
    lengths = [np.linalg.norm(each, axis=1) for each in (projected, goal)]
    cosines = (projected * goal).sum(1) / np.prod(lengths, axis=0)
    steps = losses(work_dir)
    assert set(steps[epoch + 1]) == {'loss', 'loss_embedding'}
    assert steps[epoch + 1]['loss_embedding'] == pytest.approx(1 - cosines.mean(), abs=1e-6)
    assert steps[3]['loss'] < steps[1]['loss'] - 0.1


def test_a_resumed_run_repeats_the_rest(folder, whole, tmp_path):
    work_dir, _ = whole
    first = str(work_dir / 'epoch_2.pth')
    cfg = config_of(folder, tmp_path, load_from=first, resume=True)
    Runner.from_cfg(cfg).train()
    assert losses(tmp_path) == {3: losses(work_dir)[3]}
    whole, again = (
        torch.load(each / 'epoch_3.pth', weights_only=False)['state_dict']
        for each in (work_dir, tmp_path)
    )
    assert whole.keys() == again.keys()
    assert all(torch.equal(value, again[key]) for key, value in whole.items())


def test_images_are_explained_without_labels(folder, tmp_path):
    model = distiller(student_weight=0, input_size=32)
    model.teachers[0].loaded = True
    loader = Runner.build_dataloader(config_of(folder, tmp_path).train_dataloader)
    evaluator = ExplanationEvaluator(metrics=[dict(type='MapAgreement')], num_samples=2)
    evaluator.begin(model, loader)
    for batch in loader:
        evaluator.process(dict(batch, inputs=[each.float() for each in batch['inputs']]))
    found = evaluator.finish()
    assert found.scores['pearson'].n == len(found.gallery) == 2
    assert not any('accuracy' in name for name in found.scores)


def test_an_embedding_has_no_class_to_explain():
    with pytest.raises(ValueError) as error:
        find_subjects(network(num_classes=0), build_explainers('GradCAM', 'Hook'), 'Hook')
    assert str(error.value) == (
        'Hook: the student returns an embedding and has no class to explain; an explainer by itself '
        'takes a function as target, such as mmkdx.explain.CosineTarget'
    )


@pytest.mark.parametrize(
    ('student', 'changes', 'message'),
    [
        (
            4,
            dict(terms=dict(dkd=dict(type='DKDLoss', at='logits'))),
            'terms.dkd: DKDLoss needs the labels of the images, and the data samples have none',
        ),
        (
            4,
            dict(student_weight=1),
            'student: its own loss needs the labels of the images, and the data samples have none; set '
            'student_weight=0 to train by the terms alone',
        ),
        (
            0,
            dict(student_weight=1),
            'student has no classifier, so it has no loss of its own: set student_weight=0, or the '
            "number of classes in the student's config",
        ),
    ],
)
def test_what_needs_labels_is_found_by_the_dry_run(folder, tmp_path, student, changes, message):
    cfg = config_of(folder, tmp_path, student)
    if student:
        cfg.model.teacher = dict(model=dict(type='networks:OwnNetwork'))
        cfg.model.student = dict(type='networks:OwnNetwork')
    cfg.model.update(changes)
    if student and 'terms' not in changes:
        cfg.model.terms = dict(kd=dict(type='KLDivLoss', at='logits'))
    with pytest.raises(ValueError) as error:
        one_step(build_from_config(cfg), synthetic_batch(cfg))
    assert str(error.value) == message


def test_the_dry_run_says_what_is_compared(folder, tmp_path, capsys):
    tool('misc/check_config').check('config.py', config_of(folder, tmp_path))
    said = capsys.readouterr().out
    assert '| embedding | CosineLoss | embedding   | 96    | embedding   | 64    | 6,144' in said
    assert 'get no gradient' not in said
