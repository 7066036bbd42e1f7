# As prototype_scores.py, and of what parts do prototypes consist?
_base_ = ['prototype_scores.py']
prototype_scores = dict(
    show_samples=16,
    metrics=[
        dict(type='PrototypeTransfer'),
        dict(type='PrototypeParts', parts=[1, 2, 3, 4, 5, 6, 7], purity_side=72 / 224),
        dict(type='PointingGame', labels='deciding_labels', name='deciding'),
    ],
)
