# At every fifth evaluation: which features has the student by distillation, and how much do they tell
# about the class? A config adds the `base`, the same network trained on the data alone:
# custom_hooks = [dict(_base_.what_was_distilled, base=dict(model=..., checkpoint=...))]
what_was_distilled = dict(
    type='ExplainHook',
    interval=5,
    metrics=[dict(type='FeatureSimilarityScore'), dict(type='RelevanceScore')],
)
