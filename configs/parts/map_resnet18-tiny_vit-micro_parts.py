# KD and maps: where the last attention of the transformer sees the class that the teacher predicts is
# to be where the teacher's Grad-CAM sees it.
_base_ = ['kd_resnet18-tiny_vit-micro_parts.py']
model = dict(
    terms=dict(
        map=dict(
            type='ExplanationMapLoss',
            at='logits',
            explainer=dict(type='GradientRollout', layers=1),
            teacher_explainer='GradCAM',
            weight=10.0,
        )
    )
)
