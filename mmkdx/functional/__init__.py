"""Pure tensor maths: no registry, no model."""

from mmkdx.functional.class_maps import ClassMaps, first_tensor, map_tensors
from mmkdx.functional.linearised import head_jacobian
from mmkdx.functional.maps import degenerate_maps, normalize_maps, resize_maps
from mmkdx.functional.precision import full_precision, math_kernel, no_autocast
from mmkdx.functional.spatial import resize_map, tokens_to_map

__all__ = [
    'ClassMaps',
    'degenerate_maps',
    'first_tensor',
    'full_precision',
    'head_jacobian',
    'map_tensors',
    'math_kernel',
    'no_autocast',
    'normalize_maps',
    'resize_map',
    'resize_maps',
    'tokens_to_map',
]
