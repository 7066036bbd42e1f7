# resnet18-tiny_parts.py, fine-tuned with a deleted cell in every second image. SingleDeletion deletes
# such cells and finds this model in domain. Its score is the paper's IDSDS (Hesse et al., NeurIPS 2024).
_base_ = ['resnet18-tiny_parts-removed-pixels.py']
train_dataloader = dict(
    dataset=dict(
        pipeline=[
            dict(type='RandomFlip', prob=0.5, direction='horizontal'),
            dict(type='DeleteCell', grid=4, prob=0.5, fill={{_base_.data_preprocessor.mean}}),
            {{_base_.pack_inputs}},
        ]
    )
)
