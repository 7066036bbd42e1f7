"""The version of mmkdx."""

__version__ = '0.1.0'
