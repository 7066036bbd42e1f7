"""The distiller and its parts: taps, terms, adapters, schedules and teachers."""

from mmkdx.distillation.distiller import Distiller
from mmkdx.distillation.taps import Tap, TapSet
from mmkdx.distillation.teachers import EMATeacher, Teacher, TeacherEnsemble
from mmkdx.distillation.terms import Term
from mmkdx.functional import ClassMaps

__all__ = [
    'ClassMaps',
    'Distiller',
    'EMATeacher',
    'Tap',
    'TapSet',
    'Teacher',
    'TeacherEnsemble',
    'Term',
]
