"""ProtoPNetHead: the hand-computed tests T1 to T4 and T9, and what must hold behind any backbone."""

import pytest
import torch
from mmpretrain.structures import DataSample
from tiny import batch, build, total
from torch import nn, tensor

from mmkdx.models.heads import ProtoPNetHead, PrototypeLayer


def head(classes=2, per_class=2, channels=2, **kwargs):
    torch.manual_seed(0)
    return ProtoPNetHead(classes, 4, per_class, channels, **kwargs)


def network(**kwargs):
    """A tiny classifier with four classes, three prototypes each."""
    torch.manual_seed(0)
    config = dict(
        type='ImageClassifier',
        backbone=dict(type='TinyBackbone', width=6),
        head=dict(
            type='ProtoPNetHead',
            **{
                **dict(num_classes=4, in_channels=6, prototypes_per_class=3, prototype_channels=5),
                **kwargs,
            },
        ),
    )
    return build(config)


def test_distances_and_similarities():
    layer = PrototypeLayer(3, 2)
    layer.prototypes.data = tensor([[0, 0], [1, 0], [0.3, 0.5]])
    embedding = tensor([[[0, 0.5], [1, 0.2]], [[0, 0.5], [0, 0.6]]])[None]
    distances = layer(embedding)
    expected = tensor([[[0, 0.5], [1, 0.4]], [[1, 0.5], [0, 1]], [[0.34, 0.04], [0.74, 0.02]]])
    torch.testing.assert_close(distances[0], expected, rtol=0, atol=1e-6)
    assert distances.flatten(2).argmin(2)[0].tolist() == [0, 2, 3]
    similarity = head().similarity(expected.amin((1, 2)))
    torch.testing.assert_close(
        similarity, tensor([9.210340, 9.210340, 3.926838]), rtol=1e-6, atol=0
    )


def test_distances_equal_those_of_all_pairs():
    generator = torch.Generator().manual_seed(1)
    layer = PrototypeLayer(7, 5)
    embedding = torch.rand(3, 5, 4, 6, generator=generator)
    pairs = embedding[:, None] - layer.prototypes[None, :, :, None, None]
    torch.testing.assert_close(layer(embedding), pairs.square().sum(2), rtol=0, atol=1e-6)
    assert layer(layer.prototypes.detach().T[None, :, :, None]).min() >= 0


def test_distances_stay_in_full_precision():
    layer = PrototypeLayer(4, 8)
    embedding = torch.rand(2, 8, 3, 3).half()
    with torch.autocast('cpu', torch.bfloat16):
        distances = layer(embedding)
    torch.testing.assert_close(distances, layer(embedding.float()), rtol=0, atol=0)


@pytest.mark.parametrize(
    ('distance', 'similarity'),
    [
        (0, 9.210340), (1e-4, 8.517293), (0.01, 4.605170), (0.1, 2.396896), (0.2, 1.791260),
        (0.45, 1.169849), (1, 0.693047), (3, 0.287649), (5, 0.182302), (100, 0.009949),
        (256, 0.003898),
    ],
)  # fmt: skip
def test_log_similarity(distance, similarity):
    value = head().similarity(tensor(float(distance), dtype=torch.float64))
    assert value.item() == pytest.approx(similarity, abs=6e-7)


def test_linear_similarity():
    assert head(similarity='linear').similarity(tensor([0.0, 2.5])).tolist() == [0, -2.5]


class Fixed(nn.Module):
    """Yields given distances in place of those of the prototypes."""

    def __init__(self, nearest):
        super().__init__()
        self.nearest = nn.Parameter(tensor(nearest))
        self.prototypes = nn.Parameter(torch.zeros(4, 2))

    def forward(self, embedding):
        return torch.stack([self.nearest, self.nearest + 1], 2)[:, :, None]


def losses_of(module, labels=(0, 1)):
    samples = [DataSample().set_gt_label(label) for label in labels]
    return module.loss((torch.zeros(len(labels), 4, 1, 2),), samples)


NEAREST = [[0.5, 1, 2, 0.4], [1.5, 0.3, 0.9, 2.5]]


def test_cluster_and_separation():
    module = head(cluster_weight=1.0, separation_weight=1.0)
    module.prototype_layer = Fixed(NEAREST)
    losses = losses_of(module)
    assert losses['loss_cluster'].item() == pytest.approx(0.7)
    assert losses['loss_separation'].item() == pytest.approx(-0.35)
    assert losses['average_separation'].item() == pytest.approx(1.05)
    (losses['loss_cluster'] + losses['loss_separation']).backward()
    gradient = module.prototype_layer.nearest.grad
    torch.testing.assert_close(gradient, tensor([[0.5, 0, 0, -0.5], [0, -0.5, 0.5, 0]]))


def test_default_weights():
    module = head()
    module.prototype_layer = Fixed(NEAREST)
    losses = losses_of(module)
    both = losses['loss_cluster'] + losses['loss_separation']
    assert both.item() == pytest.approx(0.532)
    assert losses['loss_l1'].item() == pytest.approx(2e-4)


def test_distances_above_the_channels_are_no_special_case():
    """The public code's maximum of C - d would be held at 0 by the prototypes of other classes."""
    module = head(cluster_weight=1.0)
    module.prototype_layer = Fixed([[50.0, 60, 2, 4], [1.5, 3, 90, 80]])
    assert losses_of(module)['loss_cluster'].item() == pytest.approx(65)


def test_logits_and_l1():
    module = head()
    assert module.last_layer.weight.tolist() == [[1, 1, -0.5, -0.5], [-0.5, -0.5, 1, 1]]
    logits = module.last_layer(tensor([2, 1, 0.5, 0.25]))
    assert logits.tolist() == pytest.approx([2.625, -0.75])
    module.prototype_layer = Fixed(NEAREST)
    module.l1_weight = 1.0
    assert losses_of(module)['loss_l1'].item() == pytest.approx(2.0)
    module.last_layer.weight.data[0, 2] = 0.1
    assert losses_of(module)['loss_l1'].item() == pytest.approx(1.6)


@pytest.mark.parametrize(('classes', 'l1'), [(200, 19.9), (196, 19.11)])
def test_l1_of_the_public_sizes(classes, l1):
    module = head(classes, 10)
    losses = module.loss((torch.rand(1, 4, 2, 2),), [DataSample().set_gt_label(0)])
    assert losses['loss_l1'].item() == pytest.approx(l1, rel=1e-5)


def test_without_classes():
    module = head(class_specific=False, cluster_weight=1.0, l1_weight=1.0)
    module.prototype_layer = Fixed(NEAREST)
    losses = losses_of(module)
    assert 'loss_separation' not in losses
    assert losses['loss_cluster'].item() == pytest.approx((0.4 + 0.3) / 2)
    assert losses['loss_l1'].item() == pytest.approx(6.0)
    assert module.push_classes().all()


@pytest.mark.parametrize(
    ('in_channels', 'channels', 'widths'),
    [
        (512, 128, [512, 256, 256, 128, 128]),
        (2048, 256, [2048, 1024, 1024, 512, 512, 256, 256]),
        (2208, 128, [2208, 1104, 1104, 552, 552, 276, 276, 138, 138, 128, 128]),
        (512, 512, [512, 512, 512]),
    ],
)
def test_bottleneck(in_channels, channels, widths):
    module = ProtoPNetHead(2, in_channels, 1, channels, add_on='bottleneck').add_on
    convolutions = [each for each in module if isinstance(each, nn.Conv2d)]
    assert [each.in_channels for each in convolutions] == widths[:-1]
    assert [each.out_channels for each in convolutions] == widths[1:]
    activations = [type(each) for each in module[1::2]]
    assert activations == [nn.ReLU] * (len(widths) - 2) + [nn.Sigmoid]


def test_regular_add_on():
    module = ProtoPNetHead(2, 64, 1, 32).add_on
    assert [type(each) for each in module] == [nn.Conv2d, nn.ReLU, nn.Conv2d, nn.Sigmoid]
    first, second = module[0], module[2]
    assert first.weight.shape == (32, 64, 1, 1) and second.weight.shape == (32, 32, 1, 1)
    assert not first.bias.any() and not second.bias.any()
    # Kaiming normal by the outputs: a variance of 2 / 32
    assert first.weight.var().item() == pytest.approx(2 / 32, rel=0.15)


def test_it_is_a_head_of_mmpretrain():
    model = network()
    images, samples = batch()
    losses = model(images, samples, 'loss')
    terms = {'loss', 'loss_cluster', 'loss_separation', 'loss_l1'}
    assert set(losses) == {*terms, 'average_separation'}
    total(losses).backward()
    assert all(each.grad is not None for each in model.parameters())
    logits = model(images)
    predictions = model.predict(images)
    assert [each.pred_label.item() for each in predictions] == logits.argmax(1).tolist()
    torch.testing.assert_close(
        model.head.last_layer(model.extract_feat(images, 'pre_logits')), logits
    )


def test_buffers_are_in_checkpoints():
    first, second = network(), network()
    first.head.source_image[2] = 7
    first.head.alive[1] = False
    second.load_state_dict(first.state_dict())
    assert second.head.source_image[2] == 7 and not second.head.alive[1]
    assert 'head.class_identity' in first.state_dict()


def test_pruning():
    module = head()
    labels = tensor([[0, 0, 0, 1, 1, 1], [1] * 4 + [0] * 2, [1] * 6, [0] * 6])
    assert module.prune(labels) == 2
    assert module.alive.tolist() == [True, False, True, False]
    assert module.prune(labels) == 0
    module.prototype_layer = Fixed([[0.5, 0.0, 2, 0.0], [1.5, 0.0, 0.9, 0.0]])
    module.cluster_weight = module.separation_weight = module.l1_weight = 1.0
    losses = losses_of(module)
    assert losses['loss_cluster'].item() == pytest.approx((0.5 + 0.9) / 2)
    assert losses['loss_separation'].item() == pytest.approx(-(2 + 1.5) / 2)
    assert losses['loss_l1'].item() == pytest.approx(1.0)
    logits = module((torch.zeros(2, 4, 1, 2),))
    with torch.no_grad():
        module.last_layer.weight[:, [1, 3]] = 100
    torch.testing.assert_close(module((torch.zeros(2, 4, 1, 2),)), logits)


@pytest.mark.parametrize(
    ('kwargs', 'sentence'),
    [
        (dict(add_on='wide'), "head.add_on is 'wide'; it must be one of regular, bottleneck"),
        (dict(similarity='cosine'), "head.similarity is 'cosine'; it must be one of log, linear"),
        (dict(num_classes=0), 'head.num_classes is 0; it must be an integer of at least 1'),
        (dict(prototypes_per_class=0), 'head.prototypes_per_class is 0; it must be'),
        (dict(prototype_channels=2.5), 'head.prototype_channels is 2.5; it must be'),
    ],
)
def test_bad_arguments(kwargs, sentence):
    with pytest.raises(ValueError, match=sentence):
        ProtoPNetHead(**{**dict(num_classes=2, in_channels=4), **kwargs})


def test_a_neck_is_refused():
    with pytest.raises(
        ValueError, match=r'takes feature maps of shape \(N, C, H, W\) and got \(2, 4\)'
    ):
        head()((torch.zeros(2, 4),))


def test_mixed_labels_are_refused():
    sample = DataSample().set_gt_score(tensor([0.5, 0.5]))
    with pytest.raises(ValueError, match='ProtoPNetHead needs one class an image'):
        head().loss((torch.zeros(1, 4, 2, 2),), [sample])
