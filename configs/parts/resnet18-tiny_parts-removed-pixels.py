# resnet18-tiny_parts.py, fine-tuned on images without a tenth of their pixels. FFidelity removes so
# many and finds this model in domain. Optimizer as in its paper (Zheng et al., ICLR 2025).
_base_ = ['resnet18-tiny_parts.py']
load_from = 'work_dirs/resnet18-tiny_parts/epoch_8.pth'
train_dataloader = dict(
    dataset=dict(
        pipeline=[
            dict(type='RandomFlip', prob=0.5, direction='horizontal'),
            dict(type='RandomPixelRemoval', share=0.1, fill={{_base_.data_preprocessor.mean}}),
            {{_base_.pack_inputs}},
        ]
    )
)
optim_wrapper = dict(optimizer=dict(_delete_=True, type='Adam', lr=1e-4, weight_decay=1e-4))
param_scheduler = []
train_cfg = dict(max_epochs=6, val_interval=6)
custom_hooks = [
    dict(type='EpochSeedHook'),
    dict(
        type='ExplainHook',
        explainer=dict(type='CAM'),
        target='label',
        num_samples=100,
        metrics=[dict(type='FFidelity', beta=0.1, draws=5), dict(type='SingleDeletion')],
    ),
]
