# At every evaluation, of all images: how far are the prototypes those of the teacher?
# custom_hooks = [*_base_.proto2proto_hooks, _base_.prototype_scores]
prototype_scores = dict(
    type='ExplainHook',
    explainer=dict(type='PrototypeMap'),
    target='label',
    num_samples=None,
    metrics=[dict(type='PrototypeTransfer')],
)
