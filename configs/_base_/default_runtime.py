# mmpretrain's runtime, with the registries of mmkdx.
_base_ = ['mmpretrain::_base_/default_runtime.py']
default_scope = 'mmkdx'
