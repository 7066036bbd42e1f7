"""What concerns networks themselves: reading their activations, finding their classifier."""

from mmkdx.models.taps import Tap, TapSet

__all__ = ['Tap', 'TapSet']
