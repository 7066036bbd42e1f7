# ReviewKD (Chen et al., CVPR 2021), with a warm-up of 20 epochs. The teacher's stages are seen
# before their last ReLU.
_base_ = ['kd_resnet32x4_resnet8x4_cifar100.py']
model = dict(
    student_weight=1.0,
    terms=dict(
        _delete_=True,
        reviewkd=dict(
            type='ReviewKDLoss',
            at=(
                ['backbone.layer1', 'backbone.layer2', 'backbone.layer3', 'embedding'],
                [
                    'backbone.layer1.4.relu@1:in',
                    'backbone.layer2.4.relu@1:in',
                    'backbone.layer3.4.relu@1:in',
                    'embedding',
                ],
            ),
            weight=5.0,
            schedule=dict(type='linear', start_factor=1 / 20, end=20),
        ),
    ),
)
