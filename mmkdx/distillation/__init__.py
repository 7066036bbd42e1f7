"""The distiller and its parts: taps, terms, adapters and teachers."""

from mmkdx.distillation.distiller import Distiller
from mmkdx.distillation.teacher_target import TeacherTarget
from mmkdx.distillation.teachers import EMATeacher, Teacher, TeacherEnsemble
from mmkdx.distillation.terms import Term
from mmkdx.functional import ClassMaps
from mmkdx.models import Tap, TapSet

__all__ = [
    'ClassMaps',
    'Distiller',
    'EMATeacher',
    'Tap',
    'TapSet',
    'Teacher',
    'TeacherEnsemble',
    'TeacherTarget',
    'Term',
]
