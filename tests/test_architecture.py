"""The order of the package: who imports whom, how long files are, and what is asked in one place."""

from __future__ import annotations

import ast
import io
import statistics
import tokenize
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FILES = sorted((ROOT / 'mmkdx').rglob('*.py'))

#: Packages may import from their own row and from those above; see the guide to the architecture.
ROWS = [
    {
        *('arguments', 'bounds', 'checkpoints', 'compat', 'data_configs', 'files', 'functional'),
        *('lock', 'plugins', 'registry', 'sample_numbers', 'version'),
    },
    {'datasets', 'models'},
    {'distillation', 'explain'},
    {'losses', 'metrics'},
    {'visualization'},
    {'evaluation'},
    {'apis', 'hooks'},
]
#: What the order allows, and the design does not.
FORBIDDEN = {'distillation': {'explain', 'losses', 'metrics'}, 'losses': {'distillation'}}
#: Imports inside a function that look up, with the reason.
ALLOWED: dict[tuple[str, str], str] = {}


def module_of(path: Path) -> str:
    """A file's name as a module."""
    parts = path.relative_to(ROOT).with_suffix('').parts
    return '.'.join(parts[:-1] if parts[-1] == '__init__' else parts)


MODULES = {module_of(path): path for path in FILES}


@cache
def tree(path: Path) -> ast.Module:
    """The syntax tree of a file."""
    return ast.parse(path.read_text())


def imports(path: Path, hints: bool = True) -> set[str]:
    """The modules of mmkdx that a file imports, inside functions too, and for type hints alone."""
    skipped = {
        each
        for node in ast.walk(tree(path))
        if isinstance(node, ast.If) and ast.unparse(node.test) == 'TYPE_CHECKING'
        for each in ast.walk(node)
    }
    found = set()
    for node in ast.walk(tree(path)):
        if node in skipped and not hints:
            continue
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f'{path}: a relative import'
            names = [f'{node.module}.{alias.name}' for alias in node.names]
        for name in names:
            if name.partition('.')[0] == 'mmkdx':
                found.add(name if name in MODULES else name.rpartition('.')[0])
    return found


def package_of(module: str) -> str:
    """The part of mmkdx that a module belongs to: a folder or a file."""
    return module.split('.')[1] if '.' in module else ''


EDGES = {
    name: {each for each in imports(path) if (name, each) not in ALLOWED}
    for name, path in MODULES.items()
}


def test_every_part_has_a_row():
    assert {package_of(name) for name in MODULES} - {''} == set().union(*ROWS)


def test_imports_lead_up_the_rows():
    row = {name: i for i, names in enumerate(ROWS) for name in names}
    against = [
        f'{name} imports {other}'
        for name, others in EDGES.items()
        for other in others
        if (one := package_of(name)) and (two := package_of(other))
        if row[two] > row[one] or two in FORBIDDEN.get(one, ())
    ]
    assert not against


def test_no_modules_import_in_a_circle():
    """Type hints, for which nothing is imported, may name each other."""
    edges = {name: imports(path, hints=False) & EDGES[name] for name, path in MODULES.items()}
    TopologicalSorter(edges).prepare()  # names the circle in its error


def test_no_exception_is_out_of_date():
    for (name, other), reason in ALLOWED.items():
        assert reason and other in imports(MODULES[name])


def test_files_are_short():
    lines = {module_of(path): len(path.read_text().splitlines()) for path in FILES}
    assert not {name: count for name, count in lines.items() if count > 400}
    assert statistics.median(lines.values()) <= 160
    assert lines['mmkdx.hooks.explain_hook'] <= 220


def code_lines(path: Path) -> int:
    """The lines of a file without blank ones, docstrings and comments."""
    documented = set()
    for node in ast.walk(tree(path)):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            first = node.body[0] if node.body else None
            if ast.get_docstring(node, clean=False) is not None:
                documented.update(range(first.lineno, first.end_lineno + 1))
    lines = set()
    for token in tokenize.generate_tokens(io.StringIO(path.read_text()).readline):
        if token.type in (tokenize.NAME, tokenize.NUMBER, tokenize.OP, tokenize.STRING):
            lines.update(range(token.start[0], token.end[0] + 1))
    return len(lines - documented)


def test_code_lines_of_a_sample(tmp_path):
    file = tmp_path / 'sample.py'
    lines = ['"""A', '', 'module."""', '# a comment', 'x = """', '', '"""', '', 'def f():']
    file.write_text('\n'.join([*lines, '    "Says."', '    return (', '        1', '    )', '']))
    assert code_lines(file) == 3 + 1 + 3


def test_a_method_can_be_read_from_end_to_end():
    """What CAT-KD's step runs, beside its config, in whatever files it stands.

    Not counted: what is refused (distillation.checks, losses.contract), taps by path, compiling, heads
    that are not linear, other kinds of teachers.
    """
    parts = {
        'distillation': ['distiller', 'terms', 'teachers', 'places', 'labels'],
        'models': ['taps', 'named_taps', 'intercept', 'flow', 'poolings'],
        'functional': ['class_maps'],
        'losses': ['base', 'class_map'],
    }
    counts = {
        f'{folder}.{name}': code_lines(ROOT / 'mmkdx' / folder / f'{name}.py')
        for folder, names in parts.items()
        for name in names
    }
    assert sum(counts.values()) <= 1050, counts


# What is asked in one place

#: Who may read a data set's or config's ``pipeline``, beside datasets/wrappers.py.
PIPELINES = {'mmkdx.datasets.seeded_views': 'it tells data apart by how pipelines print themselves'}
#: Who may compare with the name of a tap, beside models/named_taps.py.
TAP_NAMES = {'mmkdx.models.families': 'so Hugging Face calls what a model returns'}


def test_only_the_wrappers_know_where_a_pipeline_is():
    readers = {
        module_of(path)
        for path in FILES
        for node in ast.walk(tree(path))
        if isinstance(node, ast.Attribute) and node.attr == 'pipeline'
        if isinstance(node.ctx, ast.Load) and ast.unparse(node.value) != 'self'
    }
    assert readers - {'mmkdx.datasets.wrappers'} == set(PIPELINES)


def compared(node: ast.AST) -> set[str]:
    """The texts that a comparison compares with.

    An explainer may be called 'cam', and a kind of value that a loss ``compares`` 'logits', too.
    """
    if not isinstance(node, ast.Compare):
        return set()
    if ast.unparse(node.left).endswith(('compares', 'explainer')):
        return set()
    constants = [
        each
        for side in (node.left, *node.comparators)
        for each in (side.elts if isinstance(side, (ast.List, ast.Set, ast.Tuple)) else [side])
    ]
    return {each.value for each in constants if isinstance(each, ast.Constant)}


@pytest.mark.parametrize(
    ('code', 'found'),
    [
        ("tap == 'logits'", {'logits'}),
        ("'cam' in names", {'cam'}),
        ("tap not in ('cam', 'logits')", {'cam', 'logits'}),
        ("names['cam']", set()),
        ("self.explainer == 'cam'", set()),
    ],
)
def test_comparisons_are_found(code, found):
    assert compared(ast.parse(code, mode='eval').body) == found


def test_only_named_taps_ask_for_the_name_of_a_tap():
    names = {'cam', 'embedding', 'features', 'logits', 'prototypes'}
    askers = {
        module_of(path) for path in FILES for node in ast.walk(tree(path)) if compared(node) & names
    }
    assert askers - {'mmkdx.models.named_taps'} == set(TAP_NAMES)
