# Self-distillation: the teacher is the student's own moving average (Tarvainen and Valpola, 2017).
_base_ = ['resnet18-tiny_digits100.py']
model = dict(
    _delete_=True,
    type='Distiller',
    student={{_base_.model}},
    teacher=dict(type='EMATeacher', momentum=0.01),
    input_size=32,
    terms=dict(
        ema=dict(
            type='KLDivLoss', at='logits', tau=2, weight=1.0, schedule=dict(type='linear', end=5)
        )
    ),
)
