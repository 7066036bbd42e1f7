# KD and maps: where the transformer's attention sees the class that the teacher predicts is to be
# where the teacher's Grad-CAM sees it.
_base_ = ['kd_resnet18-tiny_vit-micro_parts.py']
model = dict(
    terms=dict(
        map=dict(
            type='ExplanationMapLoss',
            at='logits',
            explainer=dict(type='GradientRollout', detach='gradient'),
            teacher_explainer='GradCAM',
            weight=5.0,
        )
    )
)
