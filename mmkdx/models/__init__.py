"""Describes networks, and reads their activations and their heads."""

from mmkdx.models.families import ImageFormat, ModelFacts, describe, register_family, unwrap
from mmkdx.models.intercept import Tap
from mmkdx.models.taps import TapSet

__all__ = ['ImageFormat', 'ModelFacts', 'Tap', 'TapSet', 'describe', 'register_family', 'unwrap']
