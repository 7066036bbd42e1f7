"""mmkdx's registries: all of mmpretrain's, as children, and ``EXPLAINERS``.

With ``default_scope = 'mmkdx'`` a config names parts of mmkdx and of mmpretrain alike, without
prefixes. All registries are here, even if mmkdx adds nothing to them: mmengine warns about each one
that a scope lacks.
"""

from mmengine.registry import Registry
from mmpretrain import registry as mmpretrain


def _child_of(parent: Registry, *locations: str) -> Registry:
    """Makes mmkdx's registry below one of mmpretrain's.

    For a look-up mmengine imports the locations of the registry itself but not of its parents. So
    mmpretrain's locations are repeated here. Plugins come last, since they may use all other parts.
    """
    locations = [*parent._locations, *locations, 'mmkdx.plugins']
    return Registry(parent.name, parent=parent, scope='mmkdx', locations=locations)


RUNNERS = _child_of(mmpretrain.RUNNERS)
RUNNER_CONSTRUCTORS = _child_of(mmpretrain.RUNNER_CONSTRUCTORS)
LOOPS = _child_of(mmpretrain.LOOPS)
HOOKS = _child_of(mmpretrain.HOOKS, 'mmkdx.hooks')
LOG_PROCESSORS = _child_of(mmpretrain.LOG_PROCESSORS)
OPTIMIZERS = _child_of(mmpretrain.OPTIMIZERS)
OPTIM_WRAPPERS = _child_of(mmpretrain.OPTIM_WRAPPERS)
OPTIM_WRAPPER_CONSTRUCTORS = _child_of(mmpretrain.OPTIM_WRAPPER_CONSTRUCTORS)
PARAM_SCHEDULERS = _child_of(mmpretrain.PARAM_SCHEDULERS)
DATASETS = _child_of(mmpretrain.DATASETS, 'mmkdx.datasets')
DATA_SAMPLERS = _child_of(mmpretrain.DATA_SAMPLERS, 'mmkdx.datasets')
TRANSFORMS = _child_of(mmpretrain.TRANSFORMS, 'mmkdx.datasets')
MODELS = _child_of(
    mmpretrain.MODELS,
    'mmkdx.distillation',
    'mmkdx.losses',
    'mmkdx.models.backbones',
    'mmkdx.models.heads',
    'mmkdx.models.plain_classifier',
)
MODEL_WRAPPERS = _child_of(mmpretrain.MODEL_WRAPPERS)
WEIGHT_INITIALIZERS = _child_of(mmpretrain.WEIGHT_INITIALIZERS)
BATCH_AUGMENTS = _child_of(mmpretrain.BATCH_AUGMENTS)
TASK_UTILS = _child_of(mmpretrain.TASK_UTILS)
TOKENIZER = _child_of(mmpretrain.TOKENIZER)
METRICS = _child_of(mmpretrain.METRICS, 'mmkdx.metrics')
EVALUATORS = _child_of(mmpretrain.EVALUATORS)
VISUALIZERS = _child_of(mmpretrain.VISUALIZERS)
VISBACKENDS = _child_of(mmpretrain.VISBACKENDS, 'mmkdx.visualization.vis_backend')

# Explainers turn a model and images into maps, like `GradCAM`
EXPLAINERS = Registry('explainer', scope='mmkdx', locations=['mmkdx.explain', 'mmkdx.plugins'])
