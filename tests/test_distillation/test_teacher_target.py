"""Teacher's logits of which a part is taken out: what a loss then sees, and what is refused."""

import copy

import pytest
import torch
import torch.nn.functional as F
from mmpretrain.structures import DataSample
from tiny import batch, distiller, total

from mmkdx.distillation.teacher_target import TeacherTarget
from mmkdx.functional.teacher_target import KINDS, NEEDS, component_target
from mmkdx.losses import CWTMLoss, DISTLoss, DKDLoss, KLDivLoss, LogitStdLoss

TAU = 4.0


def logits(n=12, classes=5, seed=0, scale=4.0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return scale * torch.randn(n, classes, generator=generator, dtype=dtype)


LABELS = torch.arange(12) % 5


@pytest.fixture
def file(tmp_path):
    """Statistics of made-up images at the temperature 4."""
    return write(tmp_path)


def write(folder, **changes):
    t = (logits(60) / TAU).softmax(1)
    labels = torch.arange(60) % 5
    found = dict(
        mass=t.gather(1, labels[:, None]).mean().float(),
        class_mean=torch.stack([t[labels == k].mean(0) for k in range(5)]).float(),
        weight_similarity=F.normalize(logits(5, 8).float()) @ F.normalize(logits(5, 8).float()).T,
        tau=TAU,
        classes=5,
    )
    path = folder / 'statistics.pth'
    torch.save({**found, **changes}, path)
    return str(path)


@pytest.mark.parametrize('dtype', [torch.float32, torch.float64])
@pytest.mark.parametrize('kind', KINDS)
def test_softmax_gives_the_target_back(kind, file, dtype):
    target = TeacherTarget(kind, file, TAU)
    teacher = logits(dtype=dtype)
    torch.manual_seed(0)
    found = target(teacher, LABELS)
    torch.manual_seed(0)
    expected = component_target(
        (teacher / TAU).softmax(1), LABELS, kind, torch.load(file, weights_only=True)
    )
    assert found.dtype == dtype and found.isfinite().all()
    torch.testing.assert_close((found / TAU).softmax(1), expected, rtol=0, atol=1e-6)


def test_all_of_it_is_what_came():
    teacher = logits()
    assert TeacherTarget('full', 'no file, which is not read')(teacher) is teacher


@pytest.mark.parametrize(
    'loss',
    [KLDivLoss(TAU), DKDLoss(TAU), DISTLoss(TAU), LogitStdLoss(TAU), CWTMLoss(TAU)],
    ids=repr,
)
@pytest.mark.parametrize('kind', KINDS)
def test_every_loss_of_logits_is_finite(kind, loss, file):
    """Also of a teacher that is so sure that its other probabilities are 0."""
    target = TeacherTarget(kind, file, TAU)
    for scale in (4.0, 1e5):
        teacher = logits(scale=scale, dtype=torch.float32)
        student = logits(seed=1, dtype=torch.float32).requires_grad_()
        labels = (LABELS,) if 'class' in loss.needs else ()
        value = loss(student, target(teacher, LABELS), *labels)
        assert value.isfinite()
        assert torch.autograd.grad(value, student)[0].isfinite().all()


@pytest.mark.parametrize('kind', KINDS)
def test_gradient_is_student_minus_target(kind, file):
    student, teacher = logits(seed=1).requires_grad_(), logits()
    torch.manual_seed(0)
    KLDivLoss(TAU)(student, TeacherTarget(kind, file, TAU)(teacher, LABELS)).backward()
    torch.manual_seed(0)
    kept = component_target(
        (teacher / TAU).softmax(1), LABELS, kind, torch.load(file, weights_only=True)
    )
    expected = TAU * ((student.detach() / TAU).softmax(1) - kept) / 12
    torch.testing.assert_close(student.grad, expected, rtol=0, atol=1e-7)


def test_one_hot_is_the_cross_entropy():
    student = logits(seed=1)
    found = KLDivLoss(TAU)(student, TeacherTarget('onehot', tau=TAU)(logits(), LABELS)).item()
    expected = TAU**2 * F.cross_entropy(student / TAU, LABELS).item()
    assert found == pytest.approx(expected, rel=1e-12)


def test_parts_of_the_divergence():
    """Of (.6, .25, .1, .05) and logits (1, .5, 0, -.5): by hand, see Zhao et al., 2022, Eq. 5."""
    teacher = torch.tensor([[0.6, 0.25, 0.1, 0.05]], dtype=torch.float64).log()
    student = torch.tensor([[1, 0.5, 0, -0.5]], dtype=torch.float64)
    label, rest = 0.0422191, 0.0300136

    def parts(kind):
        changed = TeacherTarget(kind, tau=1.0)(teacher, torch.tensor([0]))
        whole = KLDivLoss()(student, changed).item()
        return (
            whole,
            *(DKDLoss(1, *each)(student, changed, torch.tensor([0])) for each in ((1, 0), (0, 1))),
        )

    whole, *split = parts('full')
    assert whole == pytest.approx(0.0542246, abs=5e-8)
    assert [each.item() for each in split] == pytest.approx([label, rest], abs=5e-8)
    assert whole == pytest.approx(label + 0.4 * rest, abs=1e-7)
    # Without what it says of the others, the label's part is the same
    assert parts('uniform')[1].item() == pytest.approx(label, abs=5e-8)
    assert parts('uniform')[2].item() != pytest.approx(rest, abs=1e-3)


@pytest.mark.parametrize('kind', ['onehot', 'uniform', 'permute'])
def test_half_precision_is_computed_in_fp32(kind):
    teacher = logits().half()
    torch.manual_seed(0)
    found = TeacherTarget(kind, tau=TAU)(teacher, LABELS)
    torch.manual_seed(0)
    assert found.dtype == torch.float32
    assert torch.equal(found, TeacherTarget(kind, tau=TAU)(teacher.float(), LABELS))


def test_the_teachers_prediction_needs_no_labels():
    teacher = logits()
    target = TeacherTarget('uniform', tau=TAU, anchor='argmax')
    expected = TeacherTarget('uniform', tau=TAU)(teacher, teacher.argmax(1))
    soft = torch.full((12, 5), 0.2)
    assert torch.equal(target(teacher), expected) and torch.equal(target(teacher, soft), expected)


def test_similarities_have_a_temperature_of_their_own(file):
    teacher = logits()
    flat = TeacherTarget('weightsim', file, TAU, similarity_tau=1e6)(teacher, LABELS)
    uniform = TeacherTarget('uniform', tau=TAU)(teacher, LABELS)
    torch.testing.assert_close(flat, uniform, rtol=0, atol=1e-4)
    sharp = TeacherTarget('weightsim', file, TAU)(teacher, LABELS)
    assert (sharp - uniform).abs().max() > 0.5


def test_statistics_are_no_part_of_a_checkpoint_and_move_along(file):
    target = TeacherTarget('classmean', file, TAU)
    assert not target.state_dict() and not list(target.parameters())
    assert target.double().statistic.dtype == torch.float64
    assert copy.deepcopy(target)(logits(), LABELS).isfinite().all()


# In a term


def of_logits(kind=None, loss='KLDivLoss', **arguments):
    extra = {} if kind is None else dict(teacher_target=dict(kind=kind, **arguments))
    return dict(kd=dict(type=loss, at='logits', tau=TAU, **extra))


def step(terms, **kwargs):
    torch.manual_seed(0)
    model = distiller(terms, **kwargs)
    torch.manual_seed(1)
    losses = model(*batch(), mode='loss')
    return model, losses


def test_a_step_with_each_kind(tmp_path):
    torch.manual_seed(0)
    found = torch.rand(4, 4).softmax(1)
    cosines = F.normalize(torch.randn(4, 6))
    file = write(
        tmp_path, class_mean=found, mass=found[0, 0], weight_similarity=cosines @ cosines.T
    )
    values = {}
    for kind in KINDS:
        model, losses = step(of_logits(kind, statistics=file))
        total(losses).backward()
        assert model.student.head.fc.weight.grad.isfinite().all()
        assert model.terms['kd'].teacher_target.tau == TAU  # the loss's
        assert not any('teacher_target' in key for key in model.state_dict())
        values[kind] = losses['loss_kd'].item()
    assert values['full'] == step(of_logits())[1]['loss_kd'].item()
    assert len(set(values.values())) == len(KINDS)


def test_what_a_term_compares_with():
    images, samples = batch()
    model, losses = step(of_logits('uniform'))
    model.eval()  # as in the second forward there is no batch norm to update
    labels = torch.cat([sample.gt_label for sample in samples])
    with torch.no_grad():
        teacher = component_target(
            (model.teachers[0].model(images) / TAU).softmax(1), labels, 'uniform'
        )
        student = (model.student(images) / TAU).log_softmax(1)
        found = model(images, samples, mode='loss')['loss_kd']
    expected = TAU**2 * (teacher * (teacher.log() - student)).sum(1).mean()
    assert found.item() == pytest.approx(expected.item(), rel=1e-4)


def test_a_temperature_of_its_own():
    model, _ = step(of_logits('uniform', tau=2.0))
    assert model.terms['kd'].teacher_target.tau == 2.0


def test_soft_labels_in_a_step():
    images, samples = batch()
    for sample in samples:
        sample.set_gt_score(torch.full((4,), 0.25))
    model = distiller(of_logits('uniform'))
    message = (
        r"teacher_target.kind 'uniform' needs the class of each image, and the batches have mixed or "
        r"soft labels; remove batch_augments .*, or use anchor='argmax'"
    )
    with pytest.raises(ValueError, match=message):
        model(images, samples, mode='loss')
    distiller(of_logits('uniform', anchor='argmax'))(images, samples, mode='loss')
    distiller(of_logits('full'))(images, samples, mode='loss')


def test_no_labels_in_a_step():
    images, _ = batch()
    samples = [DataSample() for _ in images]
    model = distiller(of_logits('permute'), student_weight=0)
    message = "needs the class of each image, and there are no labels; use anchor='argmax'"
    with pytest.raises(ValueError, match=message):
        model(images, samples, mode='loss')
    model = distiller(of_logits('permute', anchor='argmax'), student_weight=0)
    assert model(images, samples, mode='loss')['loss_kd'].isfinite()


def test_statistics_of_another_teacher_are_refused_before_training(file):
    message = f'terms.kd: .*{file} has 5 classes, and the teacher has 4; make it again with tools/'
    with pytest.raises(ValueError, match=message):
        distiller(of_logits('classmean', statistics=file))


# Mistakes


@pytest.mark.parametrize(
    'arguments, message',
    [
        (dict(kind='shuffle'), "teacher_target.kind is 'shuffle'; it must be one of onehot, "),
        (
            dict(kind='full', anchor='top'),
            "teacher_target.anchor is 'top'; it must be one of label",
        ),
        (dict(kind='full', tau=0), 'teacher_target.tau is 0; it must be a finite number above 0'),
        (dict(kind='full', similarity_tau=-1), 'teacher_target.similarity_tau is -1; it must'),
        *(
            (
                dict(kind=kind),
                f"kind '{kind}' needs statistics of the teacher: set teacher_target.statistics to a "
                'file made by tools/analysis_tools/teacher_statistics.py',
            )
            for kind in NEEDS
        ),
    ],
)
def test_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        TeacherTarget(**arguments)


def test_a_file_that_is_not_there(tmp_path):
    path = str(tmp_path / 'none.pth')
    message = f"teacher_target.statistics: there is no file '{path}'; make it with tools/analysis"
    with pytest.raises(FileNotFoundError, match=message):
        TeacherTarget('classmean', path)


@pytest.mark.parametrize('content', [dict(state_dict={}), [1, 2]], ids=str)
def test_a_file_of_something_else(tmp_path, content):
    torch.save(content, tmp_path / 'other.pth')
    with pytest.raises(
        ValueError, match='other.pth holds no statistics of a teacher; make it with'
    ):
        TeacherTarget('classmean', str(tmp_path / 'other.pth'))


def test_a_teacher_without_a_linear_classifier(tmp_path):
    file = write(tmp_path, weight_similarity=None)
    message = f"kind is 'weightsim', .* linear classifier, and the teacher of {file} has none"
    with pytest.raises(ValueError, match=message):
        TeacherTarget('weightsim', file)
    TeacherTarget('classmean', file)


def test_statistics_of_another_temperature(file):
    for kind in set(NEEDS) - {'weightsim'}:
        with pytest.raises(ValueError, match=f'{file} has tau 4, and tau is 2; make it again with'):
            TeacherTarget(kind, file, 2.0)(logits(), LABELS)
    # cosines of weights have none
    assert TeacherTarget('weightsim', file, 2.0)(logits(), LABELS).isfinite().all()


@pytest.mark.parametrize('kind', sorted(NEEDS))
def test_statistics_of_other_classes(file, kind):
    with pytest.raises(ValueError, match=f'{file} has 5 classes, and the teacher has 6; make it'):
        TeacherTarget(kind, file, TAU)(logits(classes=6), LABELS)


def test_no_temperature():
    with pytest.raises(ValueError, match='teacher_target.tau is missing'):
        TeacherTarget('uniform')(logits(), LABELS)
