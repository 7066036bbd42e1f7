#!/usr/bin/env python
"""Reduces a checkpoint of a training run to the student, for others to use.

It keeps the student's weights and what `meta` says about them. In a run with an EMA hook, these
are the averaged weights, as they were in the evaluations of the run.
"""

from __future__ import annotations

import argparse
import hashlib
import io
from pathlib import Path

import torch
from mmengine.runner import CheckpointLoader

import mmkdx
from mmkdx.compat import CheckpointError
from mmkdx.files import WriteError, write_file


def publish(in_file: str, out_file: str) -> Path:
    """Writes the published checkpoint, whose name ends in a hash of its content.

    Raises:
        CheckpointError: There are no weights in the file.
        WriteError: The published checkpoint cannot be written.
    """
    checkpoint = CheckpointLoader.load_checkpoint(in_file, map_location='cpu')
    weights, meta = checkpoint, {}
    if isinstance(checkpoint, dict) and 'state_dict' in checkpoint:
        weights, meta = checkpoint['state_dict'], checkpoint.get('meta', {})
    if not isinstance(weights, dict) or not any(map(torch.is_tensor, weights.values())):
        raise CheckpointError(f'Checkpoint {in_file} holds no weights: it is not one of a model.')
    # Adapters and buffers of the distillation; deleted in place because the dict has attributes
    for key in [key for key in weights if key.startswith('distill.')]:
        del weights[key]

    content = io.BytesIO()
    torch.save(dict(meta=dict(meta, mmkdx_version=mmkdx.__version__), state_dict=weights), content)
    digest = hashlib.sha256(content.getbuffer()).hexdigest()[:8]
    path = Path(f'{out_file.removesuffix(".pth")}-{digest}.pth')
    write_file(path, content.getbuffer())
    return path


def main(argv: list[str] | None = None) -> None:
    """Runs the tool."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('in_file', help='checkpoint of a training run, or a file of weights alone')
    parser.add_argument('out_file', help='the new file; a hash of its content is appended')
    args = parser.parse_args(argv)
    try:
        print(f'Published as {publish(args.in_file, args.out_file)}')
    except (CheckpointError, FileNotFoundError, WriteError) as error:
        raise SystemExit(str(error)) from error


if __name__ == '__main__':
    main()
