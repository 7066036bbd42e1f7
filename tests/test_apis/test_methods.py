"""Methods as terms, with published weights."""

import pytest
from tiny import LayerNormed, batch, classifier, distiller, total

from mmkdx.apis.methods import methods
from mmkdx.apis.new_config import METHODS


@pytest.mark.parametrize('name', METHODS)
def test_each_method_is_a_step(name):
    """Between a network of one linear layer and one with a norm in its head, where the loss takes it."""
    method = methods(side=16, batch_size=6, num_images=30, epochs=3)[name]
    student = classifier(4)
    # WKD takes the cost of moving between classes from the teacher's linear layer
    teacher = classifier(4) if name == 'wkd-l' else LayerNormed()
    model = distiller(method.terms, student=student, teacher=dict(model=teacher), input_size=16)
    images, samples = batch(6, 16)
    for i, sample in enumerate(samples):
        sample.set_metainfo(dict(sample_idx=i))
    losses = model(images, samples, mode='loss')
    total(losses).backward()
    assert all(f'loss_{term}' in losses for term in method.terms)
    assert any(p.grad.abs().sum() > 0 for p in model.student.parameters())
    assert method.student_weight in (0.1, 1.0) and '(' in method.title


def test_numbers_of_methods_follow_the_data():
    found = methods(side=96, batch_size=50, num_images=1234, epochs=40)
    assert found['pkt'].terms['pkt']['weight'] == 600
    assert found['crd'].terms['crd']['num_samples'] == 1234
    assert found['e2kd'].terms['e2kd']['size'] == 96
    assert found['wkd-f'].terms['wkdfeature']['schedule'] == dict(
        type='cosine', start_factor=1, end_factor=0, begin=24, end=40
    )
    ends = [methods(1, 1, 1, n)['dkd'].terms['dkd']['schedule']['end'] for n in (1, 40, 500)]
    assert ends == [2, 8, 20]
