"""A teacher whose outputs are computed once, into files: the teacher, their writer, their reader."""

from mmkdx.distillation.cache.files import CacheError, CacheReader
from mmkdx.distillation.cache.teacher import CachedTeacher
from mmkdx.distillation.cache.writer import CacheWriter

__all__ = ['CacheError', 'CacheReader', 'CacheWriter', 'CachedTeacher']
