"""What the command-line tools are made of."""

from mmkdx.apis.command_line import mmpretrain_tool, run_tool

__all__ = ['mmpretrain_tool', 'run_tool']
