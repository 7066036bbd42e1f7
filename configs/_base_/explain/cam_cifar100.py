# At every tenth evaluation: does the student look where its teacher looks?
custom_hooks = [
    dict(
        type='ExplainHook',
        explainer=dict(type='CAM'),
        num_samples=512,
        interval=10,
        metrics=[
            dict(type='MapAgreement'),
            dict(type='DeletionInsertion'),
            dict(type='AverageDrop'),
        ],
    )
]
