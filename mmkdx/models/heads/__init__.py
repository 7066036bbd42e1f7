"""Prototype heads, on any backbone of mmpretrain."""

from mmkdx.models.heads.protopnet_head import ProtoPNetHead
from mmkdx.models.heads.prototree_head import ProtoTreeHead
from mmkdx.models.heads.prototype_head import PrototypeHead, PrototypeLayer

__all__ = ['ProtoPNetHead', 'ProtoTreeHead', 'PrototypeHead', 'PrototypeLayer']
