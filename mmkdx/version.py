"""The version of mmkdx."""

__version__ = '0.2.0'
