"""Pure tensor maths: no registry, no model."""

from mmkdx.functional.class_maps import ClassMaps
from mmkdx.functional.precision import full_precision, no_autocast
from mmkdx.functional.spatial import resize_map, tokens_to_map

__all__ = ['ClassMaps', 'full_precision', 'no_autocast', 'resize_map', 'tokens_to_map']
