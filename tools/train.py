#!/usr/bin/env python
"""Trains a model from a config; the options are those of mmpretrain's tools/train.py."""

from mmkdx.apis import run_tool

if __name__ == '__main__':
    run_tool('train')
