# At each evaluation, on 300 images: does the student look where the teacher looks, and do its maps name
# the pixels that its prediction needs?
cam_fashion = dict(
    type='ExplainHook',
    explainer=dict(type='CAM'),
    num_samples=300,
    metrics=[dict(type='MapAgreement'), dict(type='DeletionInsertion', steps=8, cross=False)],
)
