"""Configs as text, in ruff's layout."""

from processes import is_formatted

from mmkdx.apis.config_text import Reference, config_text, render

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
