"""The text of a config, in the layout of ruff."""

from __future__ import annotations

import keyword
from collections.abc import Mapping, Sequence
from typing import Any

from mmkdx.files import printable

WIDTH = 100


class Reference(str):
    """The name of a value that a config defines further up, such as ``val_dataloader``."""


def config_text(head: Sequence[str], parts: Sequence[tuple[str, Mapping[str, Any]]]) -> str:
    """The text of a Python config.

    Args:
        head (Sequence[str]): The lines of the comment at the top.
        parts (Sequence[tuple[str, Mapping]]): Comments, each with the keys below it.
    """
    lines = [f'# {printable(line)}' for line in head]
    for comment, keys in parts:
        lines += ['', *(f'# {line}' for line in comment.splitlines())] if comment else []
        for key, value in keys.items():
            text = render(value, len(key) + 3)
            if '\n' not in text and len(key) + 3 + len(text) > WIDTH >= 4 + len(text):
                text = f'(\n    {text}\n)'
            lines.append(f'{key} = {text}')
    return '\n'.join(lines) + '\n'


def render(value: Any, used: int = 0, depth: int = 0, after: int = 0) -> str:
    """The Python source of a value, on one line if it fits, else with one part per line.

    Args:
        value (Any): Dicts, lists, tuples, texts, numbers, booleans, None and ``Reference``.
        used (int): Number of characters before it on its line. Defaults to 0.
        depth (int): Number of indentation levels. Defaults to 0.
        after (int): Number of characters after it on its line. Defaults to 0.
    """
    if isinstance(value, Reference):
        return str(value)
    if not isinstance(value, dict | list | tuple) or not value:
        return 'dict()' if value == {} else repr(value)
    named = isinstance(value, dict) and all(map(_is_name, value))
    if isinstance(value, dict):
        opening, closing = ('dict(', ')') if named else ('{', '}')
        parts = [(f'{k}=' if named else f'{k!r}: ', each) for k, each in value.items()]
    else:
        opening, closing = '[]' if isinstance(value, list) else '()'
        parts = [('', each) for each in value]
    flat = ', '.join(mark + render(each) for mark, each in parts)
    flat += ',' * (isinstance(value, tuple) and len(value) == 1)
    if '\n' not in flat and used + len(opening + flat + closing) + after <= WIDTH:
        return f'{opening}{flat}{closing}'
    indent = '    ' * (depth + 1)
    lines = [
        f'{indent}{mark}{render(each, len(indent + mark), depth + 1, 1)},\n' for mark, each in parts
    ]
    return f'{opening}\n{"".join(lines)}{"    " * depth}{closing}'


def _is_name(key: Any) -> bool:
    return isinstance(key, str) and key.isidentifier() and not keyword.iskeyword(key)
