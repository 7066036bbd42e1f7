#!/usr/bin/env python
"""Tests a checkpoint; the options are those of mmpretrain's tools/test.py, --report, --compare, --base."""

from mmkdx.apis import run_tool

if __name__ == '__main__':
    run_tool('test')
