"""Proto2Proto's losses: the hand-computed tests T7, T8, T13 and T14 of the method."""

import pytest
import torch
from tiny import batch, distiller
from torch import tensor

from mmkdx.losses import GlobalExplanationLoss, PatchPrototypeLoss
from mmkdx.losses.prototype import active_mask
from mmkdx.models.heads import ProtoPNetHead

TEACHER = tensor(
    [[[0.05, 1.45], [1.45, 0.52]], [[1.45, 0.05], [0.05, 0.52]], [[0.01, 0.89], [0.85, 0.26]]]
)
STUDENT = tensor(
    [[[0.41, 0.10], [0.20, 0.00]], [[0.01, 0.08], [0.10, 0.34]], [[0.10, 0.17], [0.01, 0.29]]]
)
TEACHER_EMBEDDING = tensor([[[0.9, 0.1], [0.2, 0.4]], [[0.8, 0.2], [0.1, 0.6]]])
STUDENT_EMBEDDING = tensor([[[0.5, 0.3], [0.2, 0.0]], [[0.5, 0.2], [0.5, 0.1]]])


def pair(dtype=torch.float32):
    """Embedding and distances of student and teacher, as the taps yield them."""
    return (
        [STUDENT_EMBEDDING[None].to(dtype), STUDENT[None].to(dtype)],
        [TEACHER_EMBEDDING[None].to(dtype), TEACHER[None].to(dtype)],
    )


@pytest.mark.parametrize(
    ('distances', 'tau', 'mask'),
    [
        (TEACHER, 100, [[1, 1], [1, 0]]),  # the second prototype is equally near to two patches
        (STUDENT, 100, [[1, 0], [1, 1]]),
        (TEACHER, 0.05, [[1, 0], [0, 0]]),  # 0.05 itself is not below
        (TEACHER, 0.01, [[0, 0], [0, 0]]),
        (STUDENT, 0.01, [[0, 0], [0, 1]]),
    ],
)
def test_active_mask(distances, tau, mask):
    assert active_mask(distances[None], tau).int().tolist() == [mask]


@pytest.mark.parametrize(
    ('kwargs', 'expected'),
    [
        (dict(), 0.45 / 7),
        (dict(mask_source='student'), 0.82 / 7),
        (dict(tau=0.04), 0.25 / 3),
        (dict(tau=0.001), 0.0),
        (dict(tau=0.001, reduction='mean_active'), 0.0),
        (dict(reduction='per_image'), 0.45),
        (dict(reduction='mean_active'), 0.15),
    ],
)
def test_patch_prototype_loss(kwargs, expected):
    loss = PatchPrototypeLoss(**kwargs)(*pair(torch.float64))
    torch.testing.assert_close(loss, tensor(expected, dtype=torch.float64), rtol=0, atol=1e-7)


def test_per_image_is_a_mean_over_images():
    student, teacher = ([torch.cat([value, value]) for value in values] for values in pair())
    loss = PatchPrototypeLoss(reduction='per_image')
    torch.testing.assert_close(loss(student, teacher), loss(*pair()))


def test_gradient_of_patch_prototype_loss():
    student, teacher = pair()
    for value in (*student, *teacher):
        value.requires_grad_()
    PatchPrototypeLoss()(student, teacher).backward()
    expected = [[[-0.114286, 0.057143], [0, 0]], [[-0.085714, 0], [0.114286, 0]]]
    torch.testing.assert_close(student[0].grad[0], tensor(expected), rtol=0, atol=1e-6)
    assert student[1].grad is None and teacher[0].grad is None and teacher[1].grad is None


@pytest.mark.parametrize('shape', [(2, 3), (2, 3, 1, 1)])
def test_global_explanation_loss(shape):
    student = tensor([[0.0, 0, 0], [1, 1, 1]]).view(shape).requires_grad_()
    teacher = tensor([[3.0, 4, 0], [1, 1, 1]]).view(shape).requires_grad_()
    loss = GlobalExplanationLoss()(student, teacher)
    loss.backward()
    torch.testing.assert_close(loss.detach(), tensor(2.5000002), rtol=0, atol=3e-7)
    torch.testing.assert_close(
        student.grad.flatten(1)[0], tensor([-0.3, -0.4, 0]), rtol=0, atol=1e-6
    )
    assert teacher.grad is None


@pytest.mark.parametrize(('channels', 'expected'), [(128, 1.13e-5), (256, 1.6e-5)])
def test_equal_prototypes(channels, expected):
    prototypes = torch.rand(5, channels, generator=torch.Generator().manual_seed(0))
    student = prototypes.double().requires_grad_()
    loss = GlobalExplanationLoss()(student, prototypes.double())
    loss.backward()
    assert loss.item() == pytest.approx(expected, rel=2e-3)
    # it keeps pushing, by a gradient of norm 1 / P a prototype
    torch.testing.assert_close(student.grad.norm(dim=1), torch.full((5,), 0.2, dtype=torch.float64))
    still = prototypes.double().requires_grad_()
    GlobalExplanationLoss(eps=0)(still, prototypes.double()).backward()
    assert not still.grad.any()


@pytest.mark.parametrize(
    ('kwargs', 'sentence'),
    [
        (dict(tau=0), 'tau is 0; it must be a finite number above 0'),
        (dict(mask_source='both'), "mask_source is 'both'; it must be one of teacher, student"),
        (
            dict(reduction='sum'),
            "reduction is 'sum'; it must be one of repo, per_image, mean_active",
        ),
    ],
)
def test_bad_arguments(kwargs, sentence):
    with pytest.raises(ValueError, match=sentence):
        PatchPrototypeLoss(**kwargs)


@pytest.mark.parametrize(
    ('student', 'teacher', 'sentence'),
    [
        ((6, 8), (5, 8), 'the student has 6 prototypes and the teacher 5'),
        (
            (6, 8),
            (6, 4),
            'the prototypes of the student have 8 channels and those of the teacher 4',
        ),
    ],
)
def test_prototypes_without_a_counterpart(student, teacher, sentence):
    with pytest.raises(ValueError, match=sentence):
        GlobalExplanationLoss().connect(torch.rand(student), torch.rand(teacher))
    places = [
        [torch.rand(2, channels, 4, 4), torch.rand(2, count, 4, 4)]
        for count, channels in (student, teacher)
    ]
    with pytest.raises(ValueError, match=sentence):
        PatchPrototypeLoss().connect(*places)


def test_grids_must_agree():
    places = [[torch.rand(2, 3, n, n), torch.rand(2, 5, n, n)] for n in (7, 4)]
    with pytest.raises(ValueError, match="student's grid is 7 x 7 and the teacher's 4 x 4"):
        PatchPrototypeLoss().connect(*places)


@pytest.mark.parametrize('place', [torch.rand(2, 3, 4, 4), [torch.rand(2, 3, 4, 4)]])
def test_two_taps_are_needed(place):
    with pytest.raises(ValueError, match='takes the embedding and the distances; write at='):
        PatchPrototypeLoss().connect(place, place)


def test_taps_must_be_maps():
    good = [torch.rand(2, 3, 4, 4), torch.rand(2, 5, 4, 4)]
    with pytest.raises(ValueError, match='the taps of the teacher must hold maps'):
        PatchPrototypeLoss().connect(good, [torch.rand(2, 3), torch.rand(2, 5)])


# In a distiller


def prototype_network(width=4, **head):
    return dict(
        type='ImageClassifier',
        backbone=dict(type='TinyBackbone', width=width),
        head=dict(
            type='ProtoPNetHead',
            **dict(
                dict(
                    num_classes=4, in_channels=width, prototypes_per_class=3, prototype_channels=5
                ),
                **head,
            ),
        ),
    )


TERMS = dict(
    order=dict(type='GlobalExplanationLoss', at='prototypes', weight=10.0),
    patches=dict(
        type='PatchPrototypeLoss', at=[['head.add_on', 'head.prototype_layer']] * 2, weight=10.0
    ),
)


def test_terms_of_a_distiller():
    torch.manual_seed(0)
    model = distiller(
        TERMS, student=prototype_network(), teacher=dict(model=prototype_network(8))
    ).train()
    images, samples = batch()
    student, teacher = model.student, model.teachers[0].model.eval()
    losses = model(images, samples, mode='loss')
    heads = student.head, teacher.head
    order = (heads[0].prototypes - heads[1].prototypes + 1e-6).norm(dim=1).mean()
    torch.testing.assert_close(losses['loss_order'], 10 * order)
    assert losses['loss_patches'] > 0
    sum(value for key, value in losses.items() if 'loss' in key).backward()
    assert all(each.grad is not None for each in student.parameters())
    assert all(each.grad is None for each in teacher.parameters())


def test_totals_of_the_public_code():
    """T9: the weighted sums of given parts, with the weights of head and config."""
    parts = dict(ce=1.2, cluster=0.7, separation=0.35, l1=191100, patches=0.0642857, order=2.5)
    terms = sum(term['weight'] * parts[name] for name, term in TERMS.items())
    assert terms == pytest.approx(25.642857)
    for kwargs, total in ((dict(), 20.842), (dict(cluster_weight=1.0), 46.624857 - terms)):
        head = ProtoPNetHead(2, 4, **kwargs)
        own = parts['ce'] + head.cluster_weight * parts['cluster']
        own += head.l1_weight * parts['l1'] - head.separation_weight * parts['separation']
        assert own == pytest.approx(total)


def test_prototypes_of_a_plain_classifier():
    sentence = 'terms.order.at: the student has no prototypes; use a prototype head, such as Proto'
    with pytest.raises(ValueError, match=sentence):
        distiller(dict(order=TERMS['order']))


@pytest.mark.parametrize(
    ('head', 'sentence'),
    [
        (dict(prototypes_per_class=2), 'the student has 12 prototypes and the teacher 8'),
        (dict(prototype_channels=6), 'have 5 channels and those of the teacher 6'),
    ],
)
@pytest.mark.parametrize('term', TERMS)
def test_a_teacher_that_does_not_fit(term, head, sentence):
    with pytest.raises(ValueError, match=f'terms.{term}.at: .*{sentence}'):
        distiller(
            {term: TERMS[term]},
            student=prototype_network(),
            teacher=dict(model=prototype_network(8, **head)),
        )
