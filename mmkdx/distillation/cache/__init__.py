"""A teacher whose outputs are stored in files: the teacher, the writer and the reader."""

from mmkdx.distillation.cache.files import CacheError, CacheReader
from mmkdx.distillation.cache.teacher import CachedTeacher
from mmkdx.distillation.cache.writer import CacheWriter

__all__ = ['CacheError', 'CacheReader', 'CacheWriter', 'CachedTeacher']
