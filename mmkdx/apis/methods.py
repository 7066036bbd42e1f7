"""Distillation methods with the same terms for every pair of networks."""

from __future__ import annotations

from typing import Any, NamedTuple


class Method(NamedTuple):
    """A method of distillation as terms for any pair of networks."""

    title: str
    terms: dict[str, dict]
    student_weight: float = 1.0


def methods(side: int, batch_size: int, num_images: int, epochs: int) -> dict[str, Method]:
    """The methods with the same terms for every pair of networks, with published weights.

    Args:
        side (int): Height and width of the images.
        batch_size (int): Images in a batch.
        num_images (int): Images to train on.
        epochs (int): Epochs of the training.
    """

    def one(title: str, loss: str, at: str, student_weight: float = 1.0, **options: Any) -> Method:
        name = loss.removesuffix('Loss').lower()
        return Method(title, {name: dict(type=loss, at=at, **options)}, student_weight)

    warm_up = dict(type='linear', start_factor=0.05, end=min(20, max(2, epochs // 5)))
    # The weight of WKD's transport falls from epoch 150 of 240 on
    fall = dict(type='cosine', start_factor=1, end_factor=0, begin=epochs * 5 // 8 - 1, end=epochs)
    maps, last = 'cam', 'features'
    kd = dict(type='KLDivLoss', at='logits', tau=4, weight=0.9)
    dkd = dict(type='DKDLoss', tau=4, alpha=1.0)
    cells = dict(complementary=2.0, weight=1.0, schedule=warm_up)
    ikl = dict(tau=4, weights='sample', schedule=warm_up)
    return {
        'kd': Method('knowledge distillation (Hinton et al., 2015)', dict(kd=kd), 0.1),
        'dkd': one(
            *('DKD (Zhao et al., CVPR 2022)', 'DKDLoss', 'logits'),
            **dict(tau=4, alpha=1.0, beta=8.0, weight=1.0, schedule=warm_up),
        ),
        'dist': one('DIST (Huang et al., NeurIPS 2022)', 'DISTLoss', 'logits', tau=1, weight=2.0),
        'logit-std': one(
            *('logit standardisation (Sun et al., CVPR 2024)', 'LogitStdLoss', 'logits', 0.1),
            **dict(tau=2, weight=9.0),
        ),
        'nkd': one(
            'NKD (Yang et al., ICCV 2023)', 'NKDLoss', 'logits', tau=1, gamma=1.5, weight=1.0
        ),
        'rld': one(
            *('RLD (Sun et al., ICCV 2025)', 'RLDLoss', 'logits'),
            **dict(tau=4, confidence_tau=1, alpha=1.0, beta=8.0, weight=1.0, schedule=warm_up),
        ),
        'ttm': one(
            *('TTM (Zheng and Yang, ICLR 2024)', 'WTTMLoss', 'logits'),
            **dict(gamma=0.1, weighted=False, weight=45.0),
        ),
        'wttm': one(
            'WTTM (Zheng and Yang, ICLR 2024)', 'WTTMLoss', 'logits', gamma=0.2, weight=4.0
        ),
        'ikl': one(
            *('IKL (Cui et al., NeurIPS 2024)', 'GKLLoss', 'logits'),
            **dict(alpha=1.0, beta=8.0, weight_tau=100, weight=1.0, **ikl),
        ),
        'gkl': one(
            *('GKL (Cui et al., TPAMI 2026), weights of samples', 'GKLLoss', 'logits'),
            **dict(alpha=3.0, beta=20.0, gamma=0.3, weight_tau=4, normalize='batch', weight=1.0),
            **ikl,
        ),
        'sdd': one(
            *('SDD with DKD (Wei et al., CVPR 2024)', 'SDDLoss', maps),
            **dict(scales=(1, 2), inner=dkd | dict(beta=8.0), **cells),
        ),
        'icd': Method(
            'iCD with SDD and DKD (Xue et al., AAAI 2026)',
            dict(
                sdd=dict(
                    type='SDDLoss',
                    at=maps,
                    scales=(1, 2, 4),
                    inner=dkd | dict(beta=2.0),
                    **cells,
                ),
                gram=dict(
                    type='CellGramLoss',
                    at=maps,
                    scales=(1, 2, 4),
                    weights=(1 / 6, 2 / 6, 3 / 6),
                    weight=2.0,
                ),
            ),
        ),
        'wkd-l': Method(
            'WKD-L (Lv et al., NeurIPS 2024)',
            dict(
                label=dict(type='WKDLogitLoss', at=maps, transport_weight=0.0, weight=1.0),
                transport=dict(
                    type='WKDLogitLoss',
                    at=maps,
                    tau=8,
                    target_weight=0.0,
                    weight=600.0,
                    schedule=fall,
                ),
            ),
        ),
        'wkd-f': one(
            *('WKD-F (Lv et al., NeurIPS 2024)', 'WKDFeatureLoss', last),
            **dict(mean_ratio=4, reduction='sum', weight=0.08, schedule=fall),
        ),
        'vkd': one('VkD (Miles et al., CVPR 2024)', 'VkDLoss', 'embedding', weight=1.0),
        'cat-kd': one(
            *('CAT-KD (Guo et al., CVPR 2023)', 'CATLoss', maps),
            **dict(resolution=2, normalize=False, weight=0.5),
        ),
        # The published weights belong to maps that are divided by the number of channels
        'exp-kd': one(
            *('Exp-KD (Sun et al., Pattern Recognition 2025)', 'ExpKDLoss', maps),
            **dict(channel_reduce='sum', weight=1.0),
        ),
        'e2kd': Method(
            'e²KD (Parchami-Araghi et al., ECCV 2024), with labels',
            dict(kd=kd, e2kd=dict(type='E2KDLoss', at=maps, size=side, weight=5.0)),
            0.1,
        ),
        'at': one('attention transfer (Zagoruyko, ICLR 2017)', 'ATLoss', last, weight=1000.0),
        'fitnet': one('FitNets (Romero et al., ICLR 2015)', 'FitNetLoss', last, weight=100.0),
        'sp': one('similarity-preserving (Tung, ICCV 2019)', 'SPLoss', last, weight=3000.0),
        'vid': one('VID (Ahn et al., CVPR 2019)', 'VIDLoss', last, weight=1.0),
        'nst': one('NST (Huang and Wang, 2017)', 'NSTLoss', last, weight=50.0),
        'pkt': one(
            *('PKT (Passalis and Tefas, ECCV 2018)', 'PKTLoss', 'embedding'),
            weight=30000 / batch_size,
        ),
        'rkd': one(
            *('RKD (Park et al., CVPR 2019)', 'RKDLoss', 'embedding'),
            **dict(distance=1.0, angle=2.0, weight=25.0),
        ),
        'crd': one(
            *('CRD (Tian et al., ICLR 2020)', 'CRDLoss', 'embedding'),
            **dict(num_samples=num_images, weight=0.8),
        ),
    }
