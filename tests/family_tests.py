"""Which tests the second family of packages runs: those that touch mmengine, mmcv or mmpretrain.

A test does if it names, itself or through the fixtures, functions and constants that it uses:

- something of these packages, other than a container (:data:`CONTAINERS`);
- a registry, a tool, a process of its own, or a part of mmkdx that is a subclass of theirs or adapts
  them (:data:`USERS`).

What only computes with tensors, draws or reports does not, nor do the files in :data:`OTHERS`.
"""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path

TESTS = Path(__file__).parent
FAMILY = {'mmcv', 'mmengine', 'mmpretrain'}
#: What is carried around or put back, and works alike in every release.
CONTAINERS = {'DataSample', 'DefaultScope', 'MMLogger', 'MessageHub', 'Visualizer'}
USERS = {
    *('mmkdx.apis', 'mmkdx.checkpoints', 'mmkdx.compat', 'mmkdx.datasets', 'mmkdx.hooks'),
    *('mmkdx.models.backbones', 'mmkdx.models.heads', 'mmkdx.plugins', 'mmkdx.registry'),
    *('campaign', 'processes', 'subprocess', 'tiny.tool'),
}
#: Comparisons with further packages, shell scripts with a Python that runs nothing, and wheels.
OTHERS = {'test_packaging.py', 'test_peers.py', 'test_tools_env.py'}


def touches(path: Path, name: str) -> bool:
    """Whether a function, fixture or constant of a test file touches the families.

    Args:
        path (Path): The file.
        name (str): The name of a test or of something else that the file defines at its top level.
    """
    return path.name not in OTHERS and name in _touching(path)


@cache
def _touching(path: Path) -> frozenset[str]:
    """All names of a file that touch the families."""
    module = ast.parse(path.read_text())
    imported, used, everywhere = set(_imported(module)), {}, set()
    for node in module.body:
        own = {each.id for each in ast.walk(node) if isinstance(each, ast.Name)}
        if isinstance(node, (ast.ClassDef, ast.FunctionDef)):
            names = [node.name]
            own |= {each.arg for each in ast.walk(node) if isinstance(each, ast.arg)}
            own |= set(_imported(node))
            if 'autouse=True' in ''.join(map(ast.unparse, node.decorator_list)):
                everywhere.add(node.name)
        elif isinstance(node, (ast.AnnAssign, ast.Assign)):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names = [
                each.id
                for target in targets
                for each in ast.walk(target)
                if isinstance(each, ast.Name)
            ]
        else:
            continue
        for name in names:
            used.setdefault(name, set()).update(own)
    found = {name for name in imported if name}
    while new := {name for name, own in used.items() if own & found} - found:
        found |= new
    if everywhere & found:
        found |= used.keys()
    return frozenset(found)


def _imported(tree: ast.AST) -> list[str]:
    """The names in a tree that are imported from the families, or from what uses them."""
    names = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.partition('.')[0] in FAMILY or alias.name in USERS:
                    names.append((alias.asname or alias.name).partition('.')[0])
        elif isinstance(node, ast.ImportFrom):
            helper = TESTS / f'{node.module}.py'
            for alias in node.names:
                full = f'{node.module}.{alias.name}'
                if (
                    (node.module.partition('.')[0] in FAMILY and alias.name not in CONTAINERS)
                    or any(f'{full}.'.startswith(f'{user}.') for user in USERS)
                    or (helper.is_file() and touches(helper, alias.name))
                ):
                    names.append(alias.asname or alias.name)
    return names
