"""Configs as text: in ruff's layout, and the methods that they may have."""

import pytest
from processes import is_formatted
from tiny import LayerNormed, batch, classifier, distiller, total

from mmkdx.apis.config_text import Reference, config_text, methods, render
from mmkdx.apis.new_config import METHODS

VALUES = [
    *(0.1, 1e-5, 7, None, True, 'text', "it's", '', [], (), {}, (1,), ['a', (2, 3)]),
    dict(a=1, b=dict(c=[1.5, dict(d='x' * 60), dict(e=['y' * 70, 'z' * 70])], f=())),
    {'two words': 1, 'class': 2, '3': 3},
    {3: 'x' * 97, 'key': {'if': ['w' * 40] * 3}},
    [dict(type='x' * 40, y=1), dict(type='z' * 60)],
]


def test_what_is_rendered_is_the_value_in_the_layout_of_ruff(tmp_path):
    # From lines that are just too long to lines that just fit
    lists = [['x' * n, 'y' * 40] for n in range(38, 48)]
    texts = ['z' * n for n in range(85, 98)]
    values = [*VALUES, *lists, *texts]
    keys = {f'key_{i}': value for i, value in enumerate(values)}
    nested = {f'nested_{i}': dict(part=dict(value=value)) for i, value in enumerate(values)}
    file = tmp_path / 'config.py'
    text = config_text(['A comment.'], [('', keys), ('Another\none.', nested)])
    file.write_text(text)
    found = {}
    exec(text, found)
    assert {key: found[key] for key in keys} == keys
    assert {key: found[key] for key in nested} == nested
    assert text.startswith('# A comment.\nkey_0 = 0.1\n') and '\n\n# Another\n# one.\n' in text
    assert is_formatted(file)


def test_a_comment_stays_a_comment():
    assert config_text(['from a\nimport os'], []) == '# from a\\nimport os\n'


def test_a_reference_is_a_name():
    assert render(dict(a=Reference('val_dataloader'))) == 'dict(a=val_dataloader)'


@pytest.mark.parametrize('name', METHODS)
def test_each_method_is_a_step(name):
    """Between a network of one linear layer and one with a norm in its head."""
    method = methods(side=16, batch_size=6, num_images=30, epochs=3)[name]
    student = classifier(4)
    model = distiller(
        method.terms, student=student, teacher=dict(model=LayerNormed()), input_size=16
    )
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
    ends = [methods(1, 1, 1, n)['dkd'].terms['dkd']['schedule']['end'] for n in (1, 40, 500)]
    assert ends == [2, 8, 20]
