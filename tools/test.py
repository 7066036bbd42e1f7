#!/usr/bin/env python
"""Tests a checkpoint: mmpretrain's tools/test.py with --report, --compare and --base added."""

from mmkdx.apis import run_tool

if __name__ == '__main__':
    run_tool('test')
