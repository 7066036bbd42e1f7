"""Pieces of HTML of which a report is made."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape


def page_section(name: str, heading: str, body: str) -> str:
    """A section with its headline."""
    return (
        f'<section id="{name}" aria-labelledby="{name}-head">'
        f'<h2 id="{name}-head">{heading}</h2>\n{body}\n</section>'
    )


def control_row(*parts: str) -> str:
    """A row of choices, which the page's script shows."""
    return f'<div class="controls" hidden>{"".join(parts)}</div>'


def select(name: str, label: str, options: Mapping[str, str]) -> str:
    """A choice; '' if there is nothing to choose."""
    if len(options) < 2:
        return ''
    items = ''.join(
        f'<option value="{escape(value)}">{escape(text)}</option>'
        for value, text in options.items()
    )
    return f'<label>{label}<select id="{name}" autocomplete="off">{items}</select></label>'


def definition(name: str, value: str) -> str:
    """A name with its value, which is HTML."""
    return f'<div><dt>{escape(name)}</dt><dd>{value}</dd></div>'
