"""The distiller and its parts: taps, terms, adapters and teachers."""

from mmkdx.distillation.cache import CachedTeacher
from mmkdx.distillation.composed_teachers import EMATeacher, TeacherEnsemble
from mmkdx.distillation.distiller import Distiller
from mmkdx.distillation.sharded import FullyShardedDistiller
from mmkdx.distillation.teacher_target import TeacherTarget
from mmkdx.distillation.teachers import Teacher
from mmkdx.distillation.terms import Term
from mmkdx.functional import ClassMaps
from mmkdx.models import Tap, TapSet

__all__ = [
    'CachedTeacher',
    'ClassMaps',
    'Distiller',
    'EMATeacher',
    'FullyShardedDistiller',
    'Tap',
    'TapSet',
    'Teacher',
    'TeacherEnsemble',
    'TeacherTarget',
    'Term',
]
