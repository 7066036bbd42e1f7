"""DeiT's distillation by a token of its own, made of terms, against the formulas written out."""

import pytest
import torch
from mmpretrain.structures import DataSample
from test_losses.test_logit import LABELS, logits
from timm.models.deit import VisionTransformerDistilled
from tiny import batch, classifier, distiller, total
from torch import nn

from mmkdx.distillation.terms import build_term
from mmkdx.losses import LabelLoss

HARD = dict(type='KLDivLoss', teacher_target=dict(kind='onehot', anchor='argmax'), weight=0.5)
SOFT = dict(type='KLDivLoss', tau=3, weight=0.1)


def mmpretrain_student() -> dict:
    """The config of a distilled transformer of four patches with two blocks."""
    arch = dict(embed_dims=8, num_layers=2, num_heads=2, feedforward_channels=8)
    return dict(
        type='ImageClassifier',
        backbone=dict(type='DistilledVisionTransformer', arch=arch, img_size=8, patch_size=4),
        head=dict(type='DeiTClsHead', num_classes=4, in_channels=8),
    )


def timm_student() -> nn.Module:
    """The same of timm."""
    sizes = dict(img_size=8, patch_size=4, embed_dim=8, depth=2, num_heads=2)
    return VisionTransformerDistilled(num_classes=4, **sizes)


STUDENTS = dict(
    mmpretrain=(mmpretrain_student, 'head.layers.head', 'head.layers.head_dist'),
    timm=(timm_student, 'model.head', 'model.head_dist'),
)


def distilling(kind: str, token: dict, smoothing: float = 0.0) -> nn.Module:
    """A distiller of a transformer with a distillation token, from a convolutional teacher."""
    make, label_head, token_head = STUDENTS[kind]
    torch.manual_seed(0)
    weight = 1 - token['weight']
    label = dict(type='LabelLoss', at=label_head, label_smoothing=smoothing, weight=weight)
    model = distiller(
        dict(label=label, token=dict(token, at=(token_head, 'logits'))),
        student=make(),
        student_weight=0,
        teacher=dict(model=classifier(8)),
    )
    for name, weight in model.student.named_parameters():
        if name.endswith(('_token', 'pos_embed')):  # zeros, or nearly
            nn.init.normal_(weight)
    return model.train()


def both_heads(model: nn.Module, kind: str, images: torch.Tensor) -> list[torch.Tensor]:
    """The logits of the class token's and of the distillation token's classifier."""
    found = {}
    for path in STUDENTS[kind][1:]:
        layer = model.student.get_submodule(path)
        layer.register_forward_hook(lambda _, args, out, path=path: found.update({path: out}))
    model.student(images, mode='tensor')
    return list(found.values())


@pytest.mark.filterwarnings('ignore:MMPretrain cannot train')
@pytest.mark.parametrize('kind', STUDENTS)
def test_hard_distillation_is_the_papers(kind):
    images, samples = batch()
    model = distilling(kind, HARD)
    losses = model(images, samples, 'loss')
    of_label, of_token = both_heads(model, kind, images)
    guess = model.teachers[0](images)['logits'].argmax(1)
    rows = torch.arange(6)
    expected = -0.5 * of_label.log_softmax(1)[rows, rows % 4].mean()
    expected -= 0.5 * of_token.log_softmax(1)[rows, guess].mean()
    assert total(losses).item() == pytest.approx(expected.item(), rel=1e-5)
    assert not torch.equal(of_label, of_token)


@pytest.mark.filterwarnings('ignore:MMPretrain cannot train')
def test_soft_distillation_is_the_papers_and_by_its_weight_the_codes():
    images, samples = batch()
    model = distilling('mmpretrain', SOFT)
    losses = model(images, samples, 'loss')
    of_label, of_token = both_heads(model, 'mmpretrain', images)
    teacher, rows = model.teachers[0](images)['logits'], torch.arange(6)
    label = -of_label.log_softmax(1)[rows, rows % 4].mean()
    p, q = (teacher / 3).softmax(1), (of_token / 3).softmax(1)
    kl = (p * (p / q).log()).sum()
    assert losses['loss_token'].item() == pytest.approx(0.1 * 9 * kl.item() / 6, rel=1e-4)
    assert losses['loss_label'].item() == pytest.approx(0.9 * label.item(), rel=1e-5)
    # The code divides by the number of elements, so its weight is 1/K of the paper's
    code = distilling('mmpretrain', dict(SOFT, weight=0.1 / 4))(images, samples, 'loss')
    assert code['loss_token'].item() == pytest.approx(
        0.1 * 9 * kl.item() / of_token.numel(), rel=1e-4
    )


@pytest.mark.filterwarnings('ignore:MMPretrain cannot train')
@pytest.mark.parametrize('token', [HARD, SOFT], ids=['hard', 'soft'])
def test_each_classifier_learns_from_its_own_term(token):
    images, samples = batch()
    model = distilling('mmpretrain', token)
    losses = model(images, samples, 'loss')
    layers = model.student.head.layers
    weights = [layers.head.weight, layers.head_dist.weight]
    for term, (own, other) in dict(label=weights, token=weights[::-1]).items():
        gradients = torch.autograd.grad(
            losses[f'loss_{term}'], [own, other], retain_graph=True, allow_unused=True
        )
        assert gradients[0].abs().max() > 0
        assert gradients[1] is None or not gradients[1].any()


def test_of_equal_teacher_logits_the_first_is_the_hard_label():
    term = build_term('token', dict(HARD, at='logits'))
    teacher = torch.tensor([[1.0, 2, 2, 0], [3, 3, 3, 3]], dtype=torch.float64)
    student = logits(1, (2, 4))
    expected = -0.5 * student.log_softmax(1)[[0, 1], [1, 0]].mean()
    weighted = term.weight(term(student, teacher))
    assert weighted.item() == pytest.approx(expected.item(), rel=1e-10)


@pytest.mark.parametrize('smoothing', [0, 0.1, 1])
def test_label_loss_smooths(smoothing):
    student = logits(1)
    log_q = student.log_softmax(1)
    expected = -(1 - smoothing) * log_q[torch.arange(6), LABELS].mean() - smoothing * log_q.mean()
    found = LabelLoss(label_smoothing=smoothing)(student, LABELS)
    assert found.item() == pytest.approx(expected.item(), rel=1e-10)


def test_label_loss_takes_mixed_labels_in_any_precision():
    student, mixed = logits(1), logits(2).softmax(1)
    expected = -(mixed * student.log_softmax(1)).sum(1).mean()
    assert LabelLoss()(student, mixed).item() == pytest.approx(expected.item(), rel=1e-10)
    assert LabelLoss()(student, mixed.float()).item() == pytest.approx(expected.item(), rel=1e-6)
    samples = [DataSample().set_gt_score(row) for row in mixed[:, :4].float()]
    model = distiller(dict(label=dict(type='LabelLoss', at='logits')), student_weight=0)
    losses = model(batch()[0], samples, 'loss')
    assert losses['loss_label'].isfinite()


@pytest.mark.parametrize('smoothing', [-0.1, 1.5, float('nan'), 'much'])
def test_label_loss_refuses_a_share_that_is_none(smoothing):
    with pytest.raises(ValueError, match='label_smoothing is'):
        LabelLoss(smoothing)
