"""What takes most of the time of a small run, and is no part of mmkdx: done once, or left out."""

import functools

import mmengine.config.config
import mmengine.config.utils
import sklearn.datasets

# The layout of the config's text, which a run writes with each checkpoint. onedl-mmengine has none.
mmengine.config.config.FormatCode = lambda text, **_: (text, True)
# For each base of mmpretrain's that a config has, mmengine reads all 85 metafiles again
mmengine.config.utils.load = functools.cache(mmengine.config.utils.load)
sklearn.datasets.load_digits = functools.cache(sklearn.datasets.load_digits)
