# As deit-hard_…, with the teacher's probabilities in place of its predictions.
_base_ = ['deit-hard_regnety-16gf_deit-tiny_4xb256_in1k.py']
model = dict(
    terms=dict(
        label=dict(weight=0.9),
        token=dict(
            _delete_=True,
            type='KLDivLoss',
            at=('head.layers.head_dist', 'logits'),
            tau=3,
            weight=0.1,
        ),
    )
)
