# At each evaluation, on 200 images: does the student look where the teacher looks, and do its maps name
# the pixels that its prediction needs?
cam_fashion = dict(
    type='ExplainHook',
    explainer=dict(type='CAM'),
    num_samples=200,
    metrics=[dict(type='MapAgreement'), dict(type='DeletionInsertion', steps=8, cross=False)],
)
