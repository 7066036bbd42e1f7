"""mmpretrain's command-line tools, so that mmkdx's take the same options in every version."""

from __future__ import annotations

from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

import mmpretrain


def mmpretrain_tool(name: str) -> ModuleType:
    """Imports a script of the installed mmpretrain's ``tools``.

    Args:
        name (str): 'train' or 'test'.

    Returns:
        ModuleType: The script as a module, with ``parse_args``, ``merge_args`` and ``main``.

    Raises:
        FileNotFoundError: If this mmpretrain was installed without its tools.
    """
    path = Path(mmpretrain.__file__).parent / '.mim' / 'tools' / f'{name}.py'
    if not path.is_file():
        raise FileNotFoundError(
            f'mmpretrain is installed without its tools (no {path}); install it from its wheel'
        )
    spec = spec_from_file_location(f'mmpretrain_tools_{name}', path)
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
