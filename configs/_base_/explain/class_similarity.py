# At every evaluation: does the model confuse the classes of which it gives like explanations, and is it
# as sure as it is right? A config takes
# val_evaluator = test_evaluator = {{_base_.calibrated}}
# custom_hooks = [dict(type='EpochSeedHook'), {{_base_.class_similarity}}]
calibrated = [dict(type='Accuracy', topk=(1,)), dict(type='CalibrationError')]
class_similarity = dict(
    type='ExplainHook',
    explainer=dict(type='CAM'),
    target='label',
    num_samples=None,
    show_samples=4,
    metrics=[dict(type='ClassSimilarity')],
)
