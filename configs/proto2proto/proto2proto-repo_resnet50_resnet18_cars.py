# The preset that replays the public code: its active patches are the student's, and the statistics of
# batch norm move in all stages.
_base_ = ['proto2proto_resnet50_resnet18_cars.py']
model = dict(terms=dict(patches=dict(mask_source='student')))
custom_hooks = [
    *[dict(hook, norm_eval=False) for hook in _base_.proto2proto_hooks],
    _base_.prototype_scores,
]
