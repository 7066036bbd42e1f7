"""What the command-line tools are made of, and the inferencer."""

from mmkdx.apis.command_line import mmpretrain_tool, run_tool
from mmkdx.apis.compare import compare_explainers_of
from mmkdx.apis.evaluate import evaluate_explanations
from mmkdx.apis.explain import ExplainInferencer
from mmkdx.apis.export import export_model
from mmkdx.apis.new_config import NewConfig, new_config
from mmkdx.apis.prototypes import PrototypeAnalysis

__all__ = [
    'ExplainInferencer',
    'NewConfig',
    'PrototypeAnalysis',
    'compare_explainers_of',
    'evaluate_explanations',
    'export_model',
    'mmpretrain_tool',
    'new_config',
    'run_tool',
]
