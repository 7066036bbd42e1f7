"""ProtoTreeHead: hand-made trees with exact values, a recursive reference, and what must always hold."""

import copy
import math
import runpy
import sys

import pytest
import torch
from mmpretrain.structures import DataSample
from tiny import build, run_ranks
from torch import nn

from mmkdx.models.heads.prototree_head import ProtoTreeHead


def tree(depth=3, classes=4, channels=5, seed=0, **kwargs):
    """A tree with random leaves, in eval mode."""
    torch.manual_seed(seed)
    head = ProtoTreeHead(classes, 6, depth, prototype_channels=channels, **kwargs).eval()
    head.leaves.copy_(torch.rand(2**depth, classes) * 5)
    return head


def features(n=7, seed=1, size=3, channels=6):
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(n, channels, size, size, generator=generator) * 2,)


def samples(labels):
    return [DataSample().set_gt_label(int(label)) for label in labels]


class AtDistances(nn.Module):
    """In place of the prototype layer: the input itself is the squared distances."""

    def __init__(self, count):
        super().__init__()
        self.prototypes = nn.Parameter(torch.zeros(count, 1))

    def forward(self, distances):
        return distances


def by_distances(depth, leaves, **kwargs):
    """A tree of given class probabilities whose input is squared distances (N, P, H, W)."""
    leaves = torch.tensor(leaves)
    head = ProtoTreeHead(leaves.shape[1], 1, depth, prototype_channels=1, **kwargs).eval()
    head.add_on, head.prototype_layer = nn.Identity(), AtDistances(2**depth - 1)
    head.leaves.copy_(leaves.log())
    return head


def squared(right):
    """The squared distances at which nodes turn right with such probabilities."""
    return (torch.tensor(right).log().square()[..., None, None],)


def reference(head, feats):
    """The distributions over classes, and the probabilities of the leaves, node by node in fp64."""
    embedding = torch.sigmoid(
        torch.einsum('nchw,dc->ndhw', feats[0], head.add_on[0].weight[..., 0, 0])
    )
    difference = embedding.double()[:, None] - head.prototypes.double()[:, :, None, None]
    right = (-(difference.square().sum(2) + 1e-14).sqrt().flatten(2).amin(2)).exp()
    leaves = head.leaves.double().softmax(1)
    first = len(leaves) - 1

    def below(node, image, reach):
        if node >= first:
            return reach * leaves[node - first], {node - first: reach}
        p = right[image, node]
        left_mean, left_paths = below(2 * node + 1, image, reach * (1 - p))
        right_mean, right_paths = below(2 * node + 2, image, reach * p)
        return left_mean + right_mean, {**left_paths, **right_paths}

    means, paths = zip(*(below(0, image, 1.0) for image in range(len(embedding))))
    return torch.stack(means), torch.stack([torch.stack([p[i] for i in sorted(p)]) for p in paths])


# The distribution


def test_a_tree_of_one_node():
    head = by_distances(1, [[0.8, 0.2], [0.3, 0.7]])
    # The nearest patch counts
    feats = (torch.tensor([[[[0.25, 4.0], [1.0, 9.0]]]]),)
    assert head.pre_logits(feats).item() == pytest.approx(0.606531, abs=1e-6)
    logits = head(feats)
    assert logits.exp().tolist()[0] == pytest.approx([0.496735, 0.503265], abs=1e-6)
    loss = head.loss(feats, samples([1]))['loss']
    assert loss.item() == pytest.approx(0.686638, abs=1e-6)


def test_the_first_leaf_update_of_a_tree_of_one_node():
    head = by_distances(1, [[0.5, 0.5], [0.5, 0.5]]).train()
    head.leaves.zero_()
    feats = (torch.full((1, 1, 1, 1), 0.25),)
    assert head.loss(feats, samples([1]))['loss'].item() == pytest.approx(math.log(2))
    assert head.leaves[1].tolist() == pytest.approx([0, 0.606531], abs=1e-6)
    assert head.leaves[0].tolist() == pytest.approx([0, 0.393469], abs=1e-6)
    assert head.leaves[1].softmax(0).tolist() == pytest.approx([0.352851, 0.647149], abs=1e-6)


@pytest.mark.parametrize('depth', [1, 2, 3, 5])
@pytest.mark.parametrize('seed', [0, 1])
def test_equals_the_recursive_tree(depth, seed):
    head = tree(depth, seed=seed)
    means, paths = reference(head, features(seed=seed))
    log_paths, logits = head(features(seed=seed), with_paths=True)
    torch.testing.assert_close(log_paths.exp().double(), paths, rtol=1e-4, atol=1e-7)
    torch.testing.assert_close(logits.exp().double(), means, rtol=1e-4, atol=1e-7)
    assert torch.equal(head(features(seed=seed)), logits)


def test_probabilities_sum_to_one_at_the_published_size():
    head = tree(9, classes=200, channels=256).train()
    paths, logits = head(features(4), with_paths=True)
    assert paths.shape == (4, 512) and logits.shape == (4, 200)
    ones = torch.ones(4)
    torch.testing.assert_close(paths.exp().sum(1), ones)
    torch.testing.assert_close(logits.exp().sum(1), ones)
    torch.testing.assert_close(logits.softmax(1), logits.exp(), rtol=1e-4, atol=1e-7)


def test_how_it_begins():
    torch.manual_seed(0)
    head = ProtoTreeHead(10, 512)
    assert head.prototypes.shape == (511, 256) and head.leaves.shape == (512, 10)
    assert head.prototypes.mean().item() == pytest.approx(0.5, abs=1e-3)
    assert head.prototypes.std().item() == pytest.approx(0.1, abs=1e-3)
    convolution, sigmoid = head.add_on
    assert convolution.bias is None and isinstance(sigmoid, nn.Sigmoid)
    assert convolution.weight.std().item() == pytest.approx(math.sqrt(2 / (512 + 256)), rel=0.01)
    # Leaves are no parameters, and at first they know nothing
    assert {name for name, _ in head.named_parameters()} == {
        'add_on.0.weight',
        'prototype_layer.prototypes',
    }
    torch.testing.assert_close(head(features(2, channels=512)).exp(), torch.full((2, 10), 0.1))


def test_similarity():
    head = tree()
    distances = torch.tensor([[0.0, 0.25], [4.0, -0.25]])
    expected = torch.tensor([[1.0, 0.606531], [0.135335, 0.606531]])
    torch.testing.assert_close(head.similarity(distances), expected, rtol=0, atol=1e-6)


# Numbers that are hard


@pytest.mark.parametrize('distance', [0.0, 1e-20, 1e-12, 1e4, 1e10])
@pytest.mark.parametrize('label', [0, 1])
@pytest.mark.parametrize('routing', ['distributed', 'max_path', 'greedy'])
def test_finite_where_a_turn_is_certain(distance, label, routing):
    head = by_distances(2, [[0.5, 0.5]] * 4, routing=routing)
    # 0 and 1 are both impossible somewhere: softmax underflows
    head.leaves.copy_(torch.tensor([[900.0, 0], [0, 900.0], [900.0, 0], [0, 0]]))
    distances = torch.full((1, 3, 1, 1), distance, requires_grad=True)
    logits = head((distances,))
    assert logits.isfinite().all()
    assert logits.exp().sum().item() == pytest.approx(1, rel=1e-5)
    head.train()
    loss = head.loss((distances,), samples([label]))['loss']
    loss.backward()
    assert loss.isfinite() and distances.grad.isfinite().all()
    assert head.leaves.isfinite().all() and (head.leaves >= 0).all()


def test_no_nan_where_no_leaf_that_is_reached_knows_the_class():
    """All is certain to arrive at leaves of class 0; the likelihood of class 1 is below any number."""
    head = by_distances(2, [[0.5, 0.5]] * 4).train()
    head.leaves.copy_(torch.tensor([[5000.0, 0], [5000.0, 0], [5000.0, 0], [0, 5000.0]]))
    distances = torch.full((1, 3, 1, 1), 1e8, requires_grad=True)
    loss = head.loss((distances,), samples([1]))['loss']
    loss.backward()
    assert loss.item() > 600 and math.isfinite(loss.item())
    assert distances.grad.isfinite().all() and head.leaves.isfinite().all()


def test_tiny_path_probabilities_are_not_rounded_away():
    """Of two leaves, the one of the class is reached with exp(-300), far below the range of fp32."""
    head = by_distances(1, [[0.5, 0.5]] * 2)
    head.leaves.copy_(torch.tensor([[900.0, 0], [0, 900.0]]))
    distances = torch.full((1, 1, 1, 1), 300.0**2, requires_grad=True)
    logits = head((distances,))
    assert logits[0].tolist() == pytest.approx([0, -300], abs=1e-3)
    logits[0, 1].backward()
    # The gradient of -sqrt(d)
    assert distances.grad.item() == pytest.approx(-1 / 600, rel=1e-5)


def test_a_turn_to_the_left_that_is_hardly_possible():
    """In fp32 ``1 - exp(-1e-5)`` is off by more than a thousandth."""
    head = by_distances(1, [[0.5, 0.5]] * 2)
    paths, _ = head((torch.full((1, 1, 1, 1), 1e-10),), with_paths=True)
    left = -math.expm1(-math.sqrt(1e-10 + 1e-14))
    assert paths[0, 0].item() == pytest.approx(math.log(left), abs=1e-5)


def test_classes_that_are_all_but_impossible():
    """The only leaf that could speak for class 1 is pruned; of the others none gives it exp(-690)."""
    head = by_distances(1, [[0.5, 0.5]] * 2)
    head.leaves.copy_(torch.tensor([[900.0, 0], [0, 0]]))
    assert head.prune(0.5) == 1
    assert head(squared([[0.5]]))[0].tolist() == pytest.approx([0, -900], abs=1e-3)


@pytest.mark.parametrize('pruned', [False, True])
def test_gradients(pruned):
    head = tree(3).double()
    if pruned:
        head.leaves[2:4] = 0
        assert head.prune(0.3) == 2
    feats = features(3)[0].double().requires_grad_()
    weight = torch.randn(3, 4, dtype=torch.float64)
    parameters = (head.prototypes, head.add_on[0].weight)
    assert torch.autograd.gradcheck(lambda x, *_: (head((x,)) * weight).sum(), (feats, *parameters))


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
def test_autocast(dtype):
    head = tree(4).train()
    feats = features(16)
    exact = head(feats)
    with torch.autocast('cpu', dtype):
        logits = head(feats)
        loss = head.loss(feats, samples(range(4)) * 4)['loss']
    assert logits.dtype == loss.dtype == head.leaves.dtype == torch.float32
    torch.testing.assert_close(logits, exact, rtol=0, atol=0.05)
    assert loss.isfinite() and head.leaves.isfinite().all()

    # Only the add-on is in half precision: with an embedding given, nothing changes
    feats, labels = squared([[0.3, 0.6, 0.9], [0.7, 0.2, 0.1]]), samples([0, 1])
    head = by_distances(2, [[0.9, 0.1], [0.2, 0.8], [0.3, 0.7], [0.6, 0.4]]).train()
    same = copy.deepcopy(head)
    assert head.loss(feats, labels)['loss'].isfinite()
    with torch.autocast('cpu', dtype):
        same.loss(feats, labels)
        assert torch.equal(same(feats), head(feats))
    assert torch.equal(same.leaves, head.leaves)


# Routing

LEAVES = [[0.7, 0.2, 0.1], [0.1, 0.8, 0.1], [0.2, 0.2, 0.6], [0.25, 0.5, 0.25]]
# Greedy goes left, then right: .6 * .51. The most probable path is left of the right: .4 * .9.
RIGHT = [[0.4, 0.51, 0.1]]


@pytest.mark.parametrize(
    'routing, expected',
    [
        ('max_path', LEAVES[2]),
        ('greedy', LEAVES[1]),
        ('distributed', [0.3184, 0.3956, 0.286]),
    ],
)
def test_routing(routing, expected):
    head = by_distances(2, LEAVES, routing=routing)
    assert head(squared(RIGHT)).exp().tolist()[0] == pytest.approx(expected, abs=1e-6)
    head.train()
    trained = head(squared(RIGHT)).exp().tolist()[0]
    assert trained == pytest.approx([0.3184, 0.3956, 0.286], abs=1e-6)


@pytest.mark.parametrize('routing', ['max_path', 'greedy'])
def test_routing_of_each_image_by_itself(routing):
    head = tree(4, routing=routing)
    means, paths = reference(head, features(20))
    right = head.pre_logits(features(20))
    for image, logits in enumerate(head(features(20))):
        if routing == 'max_path':
            leaf = paths[image].argmax()
        else:
            node = 0
            while node < 15:
                node = 2 * node + (2 if right[image, node] > 0.5 else 1)
            leaf = node - 15
        torch.testing.assert_close(logits, head.leaves[leaf].log_softmax(0))


# Leaves


def update_by_loops(head, feats, labels, start, batches):
    means, paths = reference(head, feats)
    leaves = (head.leaves - start / batches).relu().double()
    old = head.leaves.double().softmax(1)
    for leaf in range(len(leaves)):
        for image, label in enumerate(labels):
            leaves[leaf, label] += paths[image, leaf] * old[leaf, label] / means[image, label]
    return leaves


def test_leaf_updates():
    head = tree(3).train()
    labels = [0, 1, 2, 3, 3, 1, 0]
    start = torch.zeros_like(head.leaves)
    batches = 1
    for step in range(6):
        if step in (2, 4):  # epochs, of which the first is not announced
            start, batches = head.leaves.clone(), 3
            head.begin_epoch(3)
        expected = update_by_loops(head, features(seed=step), labels, start, batches)
        loss = head.loss(features(seed=step), samples(labels))['loss']
        torch.testing.assert_close(head.leaves.double(), expected, rtol=1e-4, atol=1e-5)
        loss.backward()
    assert head.leaves.requires_grad is False


def test_leaves_forget_in_one_epoch_what_they_were():
    head = by_distances(1, [[0.5, 0.5]] * 2).train()
    head.leaves.copy_(torch.tensor([[3.0, 9.0], [6.0, 0.0]]))
    head.begin_epoch(3)
    # All of class 1, and never right
    for _ in range(3):
        head.loss((torch.full((2, 1, 1, 1), 1e4),), samples([1, 1]))
    assert head.leaves[0].tolist() == pytest.approx([0, 6], abs=1e-5)
    assert head.leaves[1].tolist() == pytest.approx([0, 0], abs=1e-5)
    assert (head.leaves >= 0).all()
    # Subtracted is what the epoch began with, not what is there
    head.loss((torch.full((2, 1, 1, 1), 1e4),), samples([0, 0]))
    assert head.leaves[0].tolist() == pytest.approx([2, 3], abs=1e-5)


def test_leaves_change_in_training_only():
    head = tree().eval()
    before = head.leaves.clone()
    head.loss(features(4), samples(range(4)))
    head.predict(features(4))
    head.train()
    head(features(4))
    with torch.no_grad():
        head.loss(features(4), samples(range(4)))
    assert torch.equal(head.leaves, before)
    head.loss(features(4), samples(range(4)))
    assert not torch.equal(head.leaves, before)


SCRIPT = """
import os
import sys
import torch
import torch.distributed as dist
from mmpretrain.structures import DataSample
from mmkdx.models.heads.prototree_head import ProtoTreeHead

path, rank, world = sys.argv[1], *map(int, sys.argv[2:])
if world > 1:
    dist.init_process_group('gloo', f'file://{path}.store', rank=rank, world_size=world)
torch.manual_seed(0)
head = ProtoTreeHead(4, 6, 3, prototype_channels=5).train()
for epoch in range(2):
    head.begin_epoch(3)
    for step in range(3):
        feats = torch.randn(8, 6, 3, 3)
        labels = [DataSample().set_gt_label(i % 4) for i in torch.randperm(8).tolist()]
        part = slice(rank * 8 // world, (rank + 1) * 8 // world)
        if rank == 1:
            with torch.no_grad():  # a trial that the other rank does not make
                head.loss((feats[part],), labels[part])
        head.loss((feats[part],), labels[part])
torch.save(head.leaves, f'{path}.{rank}')
if world > 1:
    dist.barrier()
    os._exit(0)  # a thread of gloo may outlive the interpreter, which then aborts with all done
"""


def test_leaves_of_two_processes_are_those_of_one(tmp_path, monkeypatch):
    script = tmp_path / 'leaves.py'
    script.write_text(SCRIPT)
    monkeypatch.setattr(sys, 'argv', [str(script), str(tmp_path / 'one'), '0', '1'])
    runpy.run_path(str(script))
    one = torch.load(tmp_path / 'one.0')
    first, second = run_ranks(SCRIPT, tmp_path / 'two', 2)
    assert torch.equal(first, second)
    torch.testing.assert_close(first, one)
    # Of the 24 images of the last epoch each is shared out among the leaves
    assert one.sum().item() == pytest.approx(24, rel=1e-4)


# Classes of nodes

#: Eight leaves of a tree of depth 3; the 3rd, 4th and 7th know nothing.
EIGHT = [
    [0.9, 0.05, 0.05],
    [0.1, 0.8, 0.1],
    [0.34, 0.33, 0.33],
    [0.33, 0.34, 0.33],
    [0.2, 0.7, 0.1],
    [0.1, 0.1, 0.8],
    [0.33, 0.33, 0.34],
    [0.6, 0.3, 0.1],
]


def test_push_classes():
    head = by_distances(3, EIGHT)
    assert head.push_classes().int().tolist() == [
        [1, 1, 1],
        [1, 1, 0],
        [1, 1, 1],
        [1, 1, 0],
        [1, 1, 0],
        [0, 1, 1],
        [1, 0, 1],
    ]
    assert head.push_classes().dtype == torch.bool
    head.prune(0.4)
    assert head.push_classes().int().tolist() == [
        [1, 1, 1],
        [1, 1, 0],
        [1, 1, 1],
        [1, 1, 0],
        [0, 0, 0],
        [0, 1, 1],
        [1, 0, 0],
    ]


def test_class_weights():
    head = by_distances(3, EIGHT)
    weights = head.class_weights()
    assert weights.shape == (3, 7)
    assert weights[:, 3].tolist() == pytest.approx([-0.8, 0.75, 0.05], abs=1e-6)
    assert weights[:, 0].tolist() == pytest.approx([-0.11, -0.0225, 0.1325], abs=1e-6)
    head.prune(0.4)
    weights = head.class_weights()
    # Nodes 1, 4 and 6 are gone
    for node in (1, 4, 6):
        assert weights[:, node].tolist() == [0, 0, 0]
    assert weights[:, 5].tolist() == pytest.approx([-0.1, -0.6, 0.7], abs=1e-6)
    # (.2, .7, .1), (.1, .1, .8), (.6, .3, .1) against (.9, .05, .05), (.1, .8, .1)
    assert weights[:, 0].tolist() == pytest.approx(
        [0.3 - 0.5, 1.1 / 3 - 0.425, 1 / 3 - 0.075], abs=1e-6
    )


def test_a_prototype_speaks_for_a_class_as_its_weight_says():
    """At a node whose children are leaves, the slope of the output in the turn is the weight."""
    head = by_distances(1, [[0.8, 0.2], [0.3, 0.7]])
    less, more = (head(squared([[p]])).exp()[0] for p in (0.3, 0.4))
    torch.testing.assert_close((more - less) / 0.1, head.class_weights()[:, 0], rtol=0, atol=1e-5)


# Pruning


def test_pruning():
    head = by_distances(3, EIGHT)
    assert head.prune(0.4) == 3
    # 4 is below threshold wholly; 1 is replaced by its left child, 6 by its right leaf
    assert head.alive.tolist() == [True, False, True, True, False, True, False]
    right = [0.3, 0.9, 0.6, 0.2, 0.7, 0.55, 0.8]
    paths, logits = head(squared([right]), with_paths=True)
    expected = [0.7 * 0.8, 0.7 * 0.2, 0, 0, 0.3 * 0.4 * 0.45, 0.3 * 0.4 * 0.55, 0, 0.3 * 0.6]
    assert paths.exp().tolist()[0] == pytest.approx(expected, abs=1e-6)
    mean = torch.tensor(expected) @ torch.tensor(EIGHT)
    torch.testing.assert_close(logits.exp()[0], mean)
    # Pruned prototypes play no part any more
    for node in (1, 4, 6):
        right[node] = 0.05
    assert torch.equal(head(squared([right])), logits)
    assert head.pre_logits(squared([right]))[0, [1, 4, 6]].tolist() == [0, 0, 0]
    # Nothing is left to do; a higher threshold finds more: leaf 8 and with it node 2, then leaf 5
    assert head.prune(0.4) == 0
    assert head.prune(0.65) == 1
    assert head.alive.tolist() == [True, False, False, True, False, True, False]
    assert head.prune(0.75) == 1
    assert head.alive.tolist() == [True, False, False, True, False, False, False]
    # What is pruned stays so
    assert head.prune(0.01) == 0
    assert head.prune(0.85) == 2
    assert head(squared([right])).exp().tolist()[0] == pytest.approx(EIGHT[0], abs=1e-6)


@pytest.mark.parametrize('routing', ['max_path', 'greedy'])
def test_no_image_arrives_at_a_pruned_leaf(routing):
    head = by_distances(3, EIGHT, routing=routing)
    # Both would go to the 4th leaf: left, right, right
    right = squared([[0.1, 0.9, 0.5, 0.4, 0.95, 0.5, 0.5]])
    assert head(right).exp().tolist()[0] == pytest.approx(EIGHT[3], abs=1e-6)
    head.prune(0.4)
    assert head(right).exp().tolist()[0] == pytest.approx(EIGHT[0], abs=1e-6)


def test_the_root_is_pruned_too():
    head = by_distances(2, [[0.5, 0.5], [0.5, 0.5], [0.9, 0.1], [0.2, 0.8]])
    assert head.prune(0.5) == 2
    assert head.alive.tolist() == [False, False, True]
    expected = [0.7 * 0.9 + 0.3 * 0.2, 0.7 * 0.1 + 0.3 * 0.8]
    probabilities = head(squared([[0.01, 0.5, 0.3]])).exp()
    assert probabilities.tolist()[0] == pytest.approx(expected, abs=1e-6)


def test_a_pruned_tree_trains_on():
    head = by_distances(3, EIGHT).train()
    head.prune(0.4)
    distances = squared([[0.3, 0.9, 0.6, 0.2, 0.7, 0.55, 0.8]])[0].requires_grad_()
    before = head.leaves.clone()
    head.loss((distances,), samples([1]))['loss'].backward()
    gradient = distances.grad.flatten()
    assert gradient.isfinite().all()
    assert (gradient != 0).tolist() == head.alive.tolist()
    changed = (head.leaves.clamp(min=0) != before.clamp(min=0)).any(1)
    assert changed.tolist() == [True, True, False, False, True, True, False, True]


def test_default_threshold():
    """A leaf of 200 classes that knows nothing is at 0.005, one of ten classes at 0.1."""
    head = by_distances(1, [[1 / 200] * 200] * 2)
    head.leaves[1, 3] += 1
    assert head.leaves.softmax(1).amax(1).tolist() == pytest.approx([0.005, 0.0135], abs=1e-4)
    assert head.prune() == 1
    assert by_distances(1, [[0.1] * 10] * 2).prune() == 0


def test_prune_refuses_to_leave_nothing():
    head = by_distances(2, [[0.6, 0.4], [0.5, 0.5], [0.5, 0.5], [0.5, 0.5]])
    with pytest.raises(ValueError, match='threshold is 0.7 and no leaf .* is 0.6\\)'):
        head.prune(0.7)
    assert head.alive.all() and head.kept_children.all()


# In a model


def model(**head):
    return build(
        dict(
            type='ImageClassifier',
            backbone=dict(type='ResNet', depth=18, base_channels=8, stem_channels=8),
            head=dict(dict(type='ProtoTreeHead', num_classes=4, in_channels=64, depth=3), **head),
        )
    )


@pytest.mark.parametrize('routing', ['distributed', 'max_path', 'greedy'])
def test_in_a_classifier(routing):
    torch.manual_seed(0)
    network = model(prototype_channels=8, routing=routing, cal_acc=True).train()
    network.init_weights()
    images, labels = torch.randn(8, 3, 64, 64), samples([0, 1, 2, 3] * 2)
    optimizer = torch.optim.Adam(network.parameters(), lr=0.01)
    network.head.begin_epoch(20)
    values = []
    for _ in range(20):
        losses = network(images, labels, mode='loss')
        assert set(losses) == {'loss', 'accuracy_top-1'}
        optimizer.zero_grad()
        losses['loss'].backward()
        assert all(parameter.grad is not None for parameter in network.parameters())
        optimizer.step()
        values.append(losses['loss'].item())
    assert values[0] == pytest.approx(math.log(4), abs=1e-5)
    assert values[-1] < values[0] - 0.2
    network.eval()
    predicted = network(images, labels, mode='predict')
    logits = network(images)
    for sample, row in zip(predicted, logits):
        torch.testing.assert_close(sample.pred_score, row.exp(), rtol=1e-4, atol=1e-6)
        assert sample.pred_label.item() == row.argmax()


def test_a_checkpoint_is_the_whole_tree():
    head = tree(3).train()
    head.begin_epoch(5)
    head.loss(features(4), samples(range(4)))
    head.leaves[3] = 0
    head.prune(0.3)
    assert not head.alive.all()
    loaded = ProtoTreeHead(4, 6, 3, prototype_channels=5)
    loaded.load_state_dict(copy.deepcopy(head.state_dict()), strict=True)
    assert torch.equal(loaded(features()), head(features()))
    for each in (head, loaded):
        each.loss(features(4), samples(range(4)))
    assert torch.equal(loaded.leaves, head.leaves)


@pytest.mark.parametrize(
    'arguments, message',
    [
        (dict(num_classes=0), 'head.num_classes is 0; it must be an integer of at least 1'),
        (dict(in_channels=None), 'head.in_channels is None'),
        (dict(depth=0), 'head.depth is 0; it must be an integer of at least 1'),
        (dict(depth=-1), 'head.depth is -1'),
        (dict(depth=2.0), 'head.depth is 2.0'),
        (dict(prototype_channels=0), 'head.prototype_channels is 0'),
        (
            dict(routing='sample_max'),
            "head.routing is 'sample_max'; it must be one of distributed, max_path, greedy",
        ),
    ],
)
def test_arguments_out_of_range(arguments, message):
    with pytest.raises(ValueError, match=message):
        ProtoTreeHead(**{**dict(num_classes=3, in_channels=4), **arguments})


@pytest.mark.parametrize('threshold', [-0.1, 1, 1.5, math.nan])
def test_threshold_out_of_range(threshold):
    with pytest.raises(
        ValueError, match=f'threshold is {threshold}; it must be a finite number of'
    ):
        tree().prune(threshold)


def test_an_epoch_without_batches():
    with pytest.raises(ValueError, match='num_batches is 0; it must be an integer of at least 1'):
        tree().begin_epoch(0)


def test_mixed_labels():
    mixed = [DataSample().set_gt_label(0).set_gt_score(torch.full((4,), 0.25))]
    with pytest.raises(ValueError, match='ProtoTreeHead needs one class .* train_cfg.augments'):
        tree().train().loss(features(1), mixed)


def test_features_that_are_no_maps():
    with pytest.raises(ValueError, match=r'ProtoTreeHead takes feature maps .* got \(2, 6\)'):
        tree()((torch.zeros(2, 6),))
