"""Maps of prototypes: what they are made of, and what is refused."""

import pytest
import torch
from explainable import images, model_for

from mmkdx.explain import PrototypeMap


def similarities(model):
    with torch.no_grad():
        return model.head.similarity(model.head.distances(model.extract_feat(images())))


def test_evidence_for_a_class():
    model = model_for('PrototypeMap')
    model.head.alive[3] = False
    maps = PrototypeMap()(model, images(), [0, 2, 1])
    similarity, weight = similarities(model), model.head.last_layer.weight.detach()
    for i, label in enumerate([0, 2, 1]):
        expected = sum(weight[label, j] * similarity[i, j] for j in range(8) if j != 3)
        torch.testing.assert_close(maps[i], expected)
    every = PrototypeMap()(model, images(), 'all')
    torch.testing.assert_close(every[[0, 1, 2], [0, 2, 1]], maps)


@pytest.mark.parametrize('targets', ['pred', 2, 'all'])
def test_a_single_prototype(targets):
    model = model_for('PrototypeMap')
    explainer = PrototypeMap(prototype=5)
    assert not explainer.class_specific
    maps, expected = explainer(model, images(), targets), similarities(model)[:, 5]
    torch.testing.assert_close(
        maps, expected[:, None].expand(-1, 4, -1, -1) if targets == 'all' else expected
    )


def test_no_such_prototype():
    with pytest.raises(
        ValueError, match='PrototypeMap.prototype is 8 and the model has 8 prototypes'
    ):
        PrototypeMap(prototype=8)(model_for('PrototypeMap'), images())


def test_no_prototypes():
    with pytest.raises(
        ValueError, match='PrototypeMap: ImageClassifier has no prototypes; use a proto'
    ):
        PrototypeMap()(model_for('GradCAM'), images())
