"""The configs of the papers' tables hold the published values, and their pages say so.

Sources: the configuration files of CAT-KD, Exp-KD and mdistiller, with their defaults.
"""

from functools import cache
from pathlib import Path

import pytest
import torch
import yaml
from mmengine.config import Config
from mmpretrain.structures import DataSample
from tiny import build

from mmkdx.distillation.models import read_config
from mmkdx.distillation.terms import build_term

ROOT = Path(__file__).parents[1]
CONFIGS = ROOT / 'configs'

# Networks and their parameters with 100 classes
NETWORKS = dict(
    resnet20=278324,
    resnet32=472756,
    resnet56=861620,
    resnet110=1736564,
    resnet8x4=1233540,
    resnet32x4=7433860,
    resnet18=11220132,
    resnet34=21328292,
    resnet50=23705252,
    resnet101=42697380,
    wrn_16_2=703284,
    wrn_40_1=569780,
    wrn_40_2=2255156,
    vgg8=3965028,
    vgg13=9462180,
    mobilenetv2=812836,
    shufflenetv1=949258,
    shufflenetv2=1355528,
)
LIGHT = ('mobilenetv2', 'shufflenetv1', 'shufflenetv2')
# Of these there are public weights
RELEASED = ('resnet56', 'resnet110', 'resnet32x4', 'resnet50', 'wrn_40_2', 'vgg13')

# teacher, student: learning rate, weight, R, normalised
CAT = {
    ('resnet56', 'resnet20'): (0.05, 0.7, 2, False),
    ('resnet110', 'resnet32'): (0.05, 1.8, 2, False),
    ('resnet32x4', 'resnet8x4'): (0.05, 15, 2, False),
    ('wrn_40_2', 'wrn_16_2'): (0.05, 12, 2, False),
    ('wrn_40_2', 'wrn_40_1'): (0.05, 1.5, 2, False),
    ('vgg13', 'vgg8'): (0.05, 4.5, 2, False),
    ('resnet32x4', 'shufflenetv1'): (0.01, 600, 4, True),
    ('resnet32x4', 'shufflenetv2'): (0.01, 600, 4, True),
    ('wrn_40_2', 'shufflenetv1'): (0.01, 80, 4, True),
    ('resnet50', 'mobilenetv2'): (0.01, 40, 2, True),
    ('vgg13', 'mobilenetv2'): (0.01, 15, 2, True),
}

# Label-free: teacher, student, weight, what else the loss is told
LABEL_FREE = {
    'cat-label-free_resnet32x4_resnet32x4_cifar100': ('resnet32x4', 'resnet32x4', 50, {}),
    'cat-binarised_resnet32x4_resnet32x4_cifar100': (
        'resnet32x4',
        'resnet32x4',
        300,
        dict(binarize=True),
    ),
    'cat-label-free_resnet32x4_resnet32x4_cifar100_99-classes': (
        'resnet32x4',
        'resnet32x4',
        50,
        {},
    ),
    'cat-label-free_resnet32x4_resnet8x4_cifar100_lowest75': (
        'resnet32x4',
        'resnet8x4',
        300,
        dict(class_select='bottomk', num_classes_selected=75, legacy=True),
    ),
}

# teacher, student: learning rate, batch size, FEAT_WEIGHT, temperature
EXP = {
    ('resnet56', 'resnet20'): (0.05, 64, 0.5, 1),
    ('resnet110', 'resnet32'): (0.01, 64, 1, 1),
    ('resnet110', 'resnet20'): (0.01, 64, 0.5, 1),
    ('resnet32x4', 'resnet8x4'): (0.01, 64, 200, 1),
    ('wrn_40_2', 'wrn_16_2'): (0.01, 64, 50, 1),
    ('wrn_40_2', 'wrn_40_1'): (0.1, 256, 10, 1),
    ('vgg13', 'vgg8'): (0.05, 64, 200, 1),
    ('resnet32x4', 'shufflenetv1'): (0.01, 64, 1000, 1),
    ('resnet32x4', 'shufflenetv2'): (0.01, 64, 100, 1),
    ('wrn_40_2', 'shufflenetv1'): (0.01, 64, 100, 1),
    ('vgg13', 'mobilenetv2'): (0.01, 64, 3000, 1),
    ('resnet50', 'mobilenetv2'): (0.01, 64, 50000, 1),
    ('resnet32x4', 'mobilenetv2'): (0.01, 64, 5, 1),
    ('resnet32x4', 'resnet20'): (0.1, 64, 10, 1),
    ('resnet56', 'shufflenetv2'): (0.01, 64, 1, 1),
    ('shufflenetv1', 'resnet20'): (0.05, 64, 1, 1),
    ('resnet34', 'resnet18'): (0.05, 64, 2000, 2),
    ('resnet101', 'resnet18'): (0.05, 64, 5, 1),
}


@cache
def read(path):
    """A config, which is not to be changed."""
    return read_config(str(CONFIGS / path), path)


def check_cifar_run(cfg, lr, batch_size=64):
    """The schedule and data that all CIFAR-100 configs of mdistiller share."""
    assert cfg.optim_wrapper.optimizer.to_dict() == dict(
        type='SGD', lr=lr, momentum=0.9, weight_decay=5e-4, fused=True
    )
    assert cfg.train_dataloader.batch_size == batch_size
    assert cfg.val_dataloader.dataset.split == cfg.test_dataloader.dataset.split == 'test'
    assert cfg.train_cfg.max_epochs == 240
    schedule = cfg.param_scheduler
    assert (schedule.type, schedule.by_epoch) == ('MultiStepLR', True)
    assert (schedule.milestones, schedule.gamma) == ([150, 180, 210], 0.1)
    mean, std = (0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)
    assert cfg.data_preprocessor.mean == pytest.approx([255 * m for m in mean])
    assert cfg.data_preprocessor.std == pytest.approx([255 * s for s in std])


def check_terms(cfg, student_weight, terms):
    """The weight of the labels' loss, and the terms, which can be built."""
    assert (cfg.model.get('student_weight', 1), cfg.model.terms.to_dict()) == (
        student_weight,
        terms,
    )
    for name, term in cfg.model.terms.to_dict().items():
        build_term(name, term)


def check_pair(cfg, teacher, student):
    """Who teaches whom, with which weights."""
    network = read(f'_base_/models/{student}_cifar.py').model
    assert cfg.model.student == network and network.head.num_classes == 100
    weights = (
        f'checkpoints/mdistiller/{teacher}.pth'
        if teacher in RELEASED
        else f'work_dirs/{teacher}_cifar100/epoch_240.pth'
    )
    source = f'mmkdx::cifar/{teacher}_cifar100.py'
    assert cfg.model.teacher == dict(model=source, checkpoint=weights)
    # Which also says in which normalisation the teacher was trained
    taught = read(f'cifar/{teacher}_cifar100.py')
    assert taught.data_preprocessor == cfg.data_preprocessor
    assert (cfg.model.type, cfg.model.input_size) == ('Distiller', 32)
    (hook,) = cfg.custom_hooks
    assert (hook.type, hook.num_samples) == ('ExplainHook', 512)
    assert [metric.type for metric in hook.metrics] == [
        'MapAgreement',
        'DeletionInsertion',
        'AverageDrop',
    ]


@pytest.mark.parametrize('network', NETWORKS)
def test_networks_are_trained_as_students_and_teachers_were(network):
    cfg = read(f'cifar/{network}_cifar100.py')
    check_cifar_run(cfg, 0.01 if network in LIGHT else 0.05)
    assert cfg.model == read(f'_base_/models/{network}_cifar.py').model


@pytest.mark.parametrize('teacher, student', CAT)
def test_cat_kd(teacher, student):
    cfg = read(f'cat_kd/cat_{teacher}_{student}_cifar100.py')
    lr, weight, resolution, normalize = CAT[teacher, student]
    check_cifar_run(cfg, lr)
    check_pair(cfg, teacher, student)
    assert cfg.model.get('student_weight', 1) == 1
    assert cfg.model.terms.to_dict() == dict(
        cat=dict(
            type='CATLoss', at='cam', resolution=resolution, normalize=normalize, weight=weight
        )
    )


@pytest.mark.parametrize('name', LABEL_FREE)
def test_label_free_cat(name):
    teacher, student, weight, extra = LABEL_FREE[name]
    cfg = read(f'cat_kd/{name}.py')
    check_cifar_run(cfg, 0.05)
    check_pair(cfg, teacher, student)
    assert cfg.model.student_weight == 0
    assert cfg.model.terms.to_dict() == dict(
        cat=dict(type='CATLoss', at='cam', resolution=2, normalize=True, weight=weight, **extra)
    )


@pytest.mark.parametrize('teacher, student', EXP)
def test_exp_kd(teacher, student):
    cfg = read(f'exp_kd/exp_{teacher}_{student}_cifar100.py')
    lr, batch_size, feat_weight, tau = EXP[teacher, student]
    check_cifar_run(cfg, lr, batch_size)
    check_pair(cfg, teacher, student)
    assert cfg.model.get('student_weight', 1) == 1
    # The published loss is 100 times a sum over the batch
    assert cfg.model.terms.to_dict() == dict(
        expkd=dict(type='ExpKDLoss', at='cam', tau=tau, weight=100 * batch_size * feat_weight)
    )


# How a ResNet-8x4 is taught by a ResNet-32x4: the weight of the labels' loss, and the terms.
# Published weights hold for batches of 64.
STAGES = (1, 2, 3)
SHELF = dict(
    kd=(0.1, dict(kd=dict(type='KLDivLoss', at='logits', tau=4, weight=0.9))),
    at=(1, {f'at{i}': dict(type='ATLoss', at=f'backbone.layer{i}', weight=1000) for i in STAGES}),
    nst=(1, {f'nst{i}': dict(type='NSTLoss', at=f'backbone.layer{i}', weight=50) for i in STAGES}),
    sp=(1, dict(sp=dict(type='SPLoss', at='features', weight=3000))),
    # 25 for distances, 50 for angles
    rkd=(1, dict(rkd=dict(type='RKDLoss', at='embedding', distance=1, angle=2, weight=25))),
    # 30,000 times a mean over all pairs, which here is a sum over a sample's pairs
    pkt=(1, dict(pkt=dict(type='PKTLoss', at='embedding', weight=468.75))),
    fitnet=(1, dict(fitnet=dict(type='FitNetLoss', at='backbone.layer2', weight=100))),
    vid=(1, {f'vid{i}': dict(type='VIDLoss', at=f'backbone.layer{i}', weight=1) for i in STAGES}),
    # 0.001 times a sum over 65,536, 32,768 and 16,384 elements, halved with each earlier stage
    ofd=(
        1,
        {
            f'ofd{i}': dict(
                type='OFDLoss',
                at=(f'backbone.layer{i}.0.relu@1:in', f'backbone.layer{i}.4.relu@1:in'),
                weight=16.384,
            )
            for i in STAGES
        },
    ),
    crd=(1, dict(crd=dict(type='CRDLoss', at='embedding', num_samples=50000, weight=0.8))),
    reviewkd=(
        1,
        dict(
            reviewkd=dict(
                type='ReviewKDLoss',
                at=(
                    [*(f'backbone.layer{i}' for i in STAGES), 'embedding'],
                    [*(f'backbone.layer{i}.4.relu@1:in' for i in STAGES), 'embedding'],
                ),
                weight=5,
                schedule=dict(type='linear', start_factor=0.05, end=20),
            )
        ),
    ),
    dkd=(
        1,
        dict(
            dkd=dict(
                type='DKDLoss',
                at='logits',
                tau=4,
                alpha=1,
                beta=8,
                schedule=dict(type='linear', start_factor=0.05, end=20),
            )
        ),
    ),
    dist=(1, dict(dist=dict(type='DISTLoss', at='logits', tau=4, weight=2))),
    **{'logit-std': (0.1, dict(kd=dict(type='LogitStdLoss', at='logits', tau=2, weight=9)))},
)


WARM_UP = dict(type='linear', start_factor=0.05, end=20)


def sdd(scales, inner, **others):
    """The term of scale-decoupled distillation."""
    return dict(type='SDDLoss', at='cam', scales=scales, inner=inner, complementary=2, **others)


def wkd_logits(tau, weight, begin=149, end=240):
    """Both terms of WKD-L: only the transport decays."""
    decay = dict(type='cosine', start_factor=1, end_factor=0, begin=begin, end=end)
    own = dict(type='WKDLogitLoss', at='cam', tau=tau, target_weight=0, weight=weight)
    return dict(
        label=dict(type='WKDLogitLoss', at='cam', transport_weight=0),
        transport=dict(own, schedule=decay),
    )


def wkd_features(ratio):
    """WKD-F: 0.08 times a sum over 256 channels."""
    decay = dict(type='cosine', start_factor=1, end_factor=0, begin=149, end=240)
    own = dict(type='WKDFeatureLoss', at='features', mean_ratio=ratio, weight=20.48)
    return dict(features=dict(own, schedule=decay))


SHELF |= {
    'sdd-kd': (0.1, dict(sdd=sdd((1, 2), dict(type='KLDivLoss', tau=4), weight=0.9))),
    'sdd-dkd': (
        1,
        dict(sdd=sdd((1, 2), dict(type='DKDLoss', tau=4, alpha=1, beta=8), schedule=WARM_UP)),
    ),
    'sdd-nkd': (
        1,
        dict(sdd=sdd((1, 2), dict(type='NKDLoss', tau=4, gamma=8), schedule=WARM_UP)),
    ),
    'rld': (
        1,
        dict(
            rld=dict(
                type='RLDLoss',
                at='logits',
                tau=4,
                confidence_tau=1,
                alpha=1,
                beta=8,
                schedule=WARM_UP,
            )
        ),
    ),
    'ikl': (
        1,
        dict(
            ikl=dict(
                type='GKLLoss',
                at='logits',
                tau=4,
                alpha=1,
                beta=8,
                weights='sample',
                weight_tau=100,
                schedule=WARM_UP,
            )
        ),
    ),
    'wkd-l': (1, wkd_logits(8, 600)),
    'wkd-f': (1, wkd_features(4)),
    'wkd-lf': (1, wkd_logits(8, 200) | wkd_features(8)),
    # No one's for this pair
    'vkd': (1, dict(vkd=dict(type='VkDLoss', at='embedding', weight=1))),
}

# teacher, student: beta
SDD = {
    ('resnet32x4', 'shufflenetv1'): 8,
    ('wrn_40_2', 'shufflenetv1'): 8,
    ('resnet50', 'mobilenetv2'): 8,
    ('vgg13', 'mobilenetv2'): 6,
    ('resnet32x4', 'shufflenetv2'): 8,
    ('resnet50', 'vgg8'): 8,
    ('resnet32x4', 'mobilenetv2'): 8,
    ('wrn_40_2', 'vgg8'): 8,
    ('wrn_40_2', 'mobilenetv2'): 6,
    ('resnet50', 'shufflenetv1'): 8,
}
# teacher, student: alpha, beta
IKL = {
    ('resnet56', 'resnet20'): (1, 4),
    ('resnet110', 'resnet32'): (1, 12),
    ('wrn_40_2', 'wrn_16_2'): (3, 12),
    ('wrn_40_2', 'wrn_40_1'): (1, 8),
    ('vgg13', 'vgg8'): (1, 12),
    ('vgg13', 'mobilenetv2'): (4, 12),
    ('resnet50', 'mobilenetv2'): (1, 12),
    ('resnet32x4', 'shufflenetv1'): (1, 8),
    ('resnet32x4', 'shufflenetv2'): (3, 12),
    ('wrn_40_2', 'shufflenetv1'): (1, 4),
}

#: Methods whose values are published for other pairs: the pair, and the terms.
OTHER_PAIRS = dict(
    ttm=(
        ('vgg13', 'vgg8'),
        dict(ttm=dict(type='WTTMLoss', at='logits', gamma=0.1, weighted=False, weight=45)),
    ),
    **{
        'wttm-crd': (
            ('vgg13', 'vgg8'),
            dict(
                crd=dict(type='CRDLoss', at='embedding', num_samples=50000, weight=0.8),
                wttm=dict(type='WTTMLoss', at='logits', gamma=0.2, weight=4),
            ),
        )
    },
    gkl=(
        ('wrn_40_2', 'wrn_16_2'),
        dict(
            gkl=dict(
                type='GKLLoss',
                at='logits',
                tau=4,
                alpha=3,
                beta=20,
                gamma=0.3,
                weights='sample',
                weight_tau=4,
                normalize='batch',
                schedule=WARM_UP,
            )
        ),
    ),
    icd=(
        ('resnet32x4', 'shufflenetv1'),
        dict(
            sdd=sdd((1, 2, 4), dict(type='DKDLoss', tau=4, alpha=1, beta=2), schedule=WARM_UP),
            gram=dict(
                type='CellGramLoss',
                at='cam',
                scales=(1, 2, 4),
                weights=(1 / 6, 2 / 6, 3 / 6),
                weight=2,
            ),
        ),
    ),
)

#: ResNet-34 to 18 on ImageNet: images on a device of eight, the learning rate, and the terms.
IMAGENET = {
    'sdd-nkd': (64, 0.2, dict(sdd=sdd((1, 2), dict(type='NKDLoss', tau=1, gamma=0.5)))),
    'rld': (
        64,
        0.2,
        dict(rld=dict(type='RLDLoss', at='logits', tau=1, confidence_tau=1, alpha=1, beta=0.5)),
    ),
    'wkd-l': (32, 0.1, wkd_logits(2, 30, -1, 100)),
}


@pytest.mark.parametrize('method', SHELF)
def test_methods_on_one_pair(method):
    cfg = read(f'kd/{method}_resnet32x4_resnet8x4_cifar100.py')
    check_cifar_run(cfg, 0.05)
    check_pair(cfg, 'resnet32x4', 'resnet8x4')
    check_terms(cfg, *SHELF[method])


def check_method(name, teacher, student, terms):
    """A pair of networks, whose students learn labels with weight 1 beside the terms."""
    cfg = read(f'kd/{name}_{teacher}_{student}_cifar100.py')
    check_cifar_run(cfg, 0.01 if student in LIGHT else 0.05)
    check_pair(cfg, teacher, student)
    check_terms(cfg, 1, terms)


@pytest.mark.parametrize('teacher, student', SDD)
def test_sdd(teacher, student):
    beta = SDD[teacher, student]
    inner = dict(type='DKDLoss', tau=4, alpha=1, beta=beta)
    # A map of 2 x 2 positions has no 16 cells of its own
    repeat = dict(repeat=True) if student == 'mobilenetv2' else {}
    term = sdd((1, 2, 4), inner, schedule=WARM_UP, **repeat)
    check_method('sdd-dkd', teacher, student, dict(sdd=term))
    assert rows('kd')[f'sdd-dkd_{teacher}_{student}_cifar100'][0] == f'alpha 1, beta {beta}'


@pytest.mark.parametrize('teacher, student', IKL)
def test_ikl(teacher, student):
    alpha, beta = IKL[teacher, student]
    (term,) = SHELF['ikl'][1].values()
    check_method('ikl', teacher, student, dict(ikl=dict(term, alpha=alpha, beta=beta)))
    assert rows('kd')[f'ikl_{teacher}_{student}_cifar100'][0] == f'alpha {alpha}, beta {beta}'


@pytest.mark.parametrize('method', OTHER_PAIRS)
def test_methods_on_other_pairs(method):
    (teacher, student), terms = OTHER_PAIRS[method]
    check_method(method, teacher, student, terms)


@pytest.mark.parametrize('method', IMAGENET)
def test_methods_on_imagenet(method):
    batch_size, lr, terms = IMAGENET[method]
    cfg = read(f'kd/{method}_resnet34_resnet18_8xb{batch_size}_in1k.py')
    optimizer = cfg.optim_wrapper.optimizer
    assert (optimizer.type, optimizer.lr, optimizer.momentum) == ('SGD', lr, 0.9)
    assert optimizer.weight_decay == 1e-4
    schedule = cfg.param_scheduler
    assert (schedule.type, schedule.by_epoch) == ('MultiStepLR', True)
    assert (schedule.milestones, schedule.gamma) == ([30, 60, 90], 0.1)
    assert (cfg.train_cfg.max_epochs, cfg.train_dataloader.batch_size) == (100, batch_size)
    assert cfg.model.teacher == dict(model='resnet34_8xb32_in1k', pretrained=True)
    check_terms(cfg, 1, terms)


def test_without_the_last_class():
    name = 'cat-label-free_resnet32x4_resnet32x4_cifar100_99-classes'
    cfg, whole = read(f'cat_kd/{name}.py'), read('cifar/resnet32x4_cifar100.py')
    subset = cfg.train_dataloader.dataset
    assert {key: subset[key] for key in subset if key != 'dataset'} == dict(
        type='ClassSubset', num_classes=99
    )
    assert subset.dataset == whole.train_dataloader.dataset
    assert cfg.test_dataloader == whole.test_dataloader
    assert [metric.type for metric in cfg.test_evaluator] == ['Accuracy', 'SingleLabelMetric']


def test_exp_kd_on_imagenet():
    cfg = read('exp_kd/exp_resnet34_resnet18_8xb64_in1k.py')
    optimizer = cfg.optim_wrapper.optimizer
    assert (optimizer.type, optimizer.lr, optimizer.momentum) == ('SGD', 0.2, 0.9)
    assert optimizer.weight_decay == 1e-4
    schedule = cfg.param_scheduler
    assert (schedule.type, schedule.by_epoch) == ('MultiStepLR', True)
    assert (schedule.milestones, schedule.gamma) == ([15, 30, 45], 0.2)
    assert (cfg.train_cfg.max_epochs, cfg.train_dataloader.batch_size) == (100, 64)
    assert cfg.model.teacher == dict(model='resnet34_8xb32_in1k', pretrained=True)
    # FEAT_WEIGHT 2 in batches of 512
    assert cfg.model.terms.to_dict() == dict(
        expkd=dict(type='ExpKDLoss', at='cam', tau=1, topk=50, weight=102400)
    )


@pytest.mark.parametrize(
    'name, metric, data_set',
    [
        ('perturbation_resnet18_in1k', 'PerturbationAUC', 'ImageNet'),
        ('segmentation_resnet18', 'MapSegmentation', 'ImageNetSegmentation'),
    ],
)
def test_tests_of_explanations(name, metric, data_set):
    cfg = read(f'exp_kd/{name}.py')
    (hook,) = cfg.custom_hooks
    assert [each.type for each in hook.metrics] == [metric]
    # All images, each model's map for its own prediction, without ReLU
    assert (hook.num_samples, hook.target, hook.explainer) == (None, 'own', dict(type='CAM'))
    assert hook.teacher.model == 'resnet34_8xb32_in1k'
    assert hook.base.model == 'resnet18_8xb32_in1k'
    data = cfg.test_dataloader.dataset
    assert data.type == data_set
    resize = [step for step in data.pipeline if not step.type.startswith(('Load', 'Pack'))]
    assert [(step.type, step.scale, step.interpolation) for step in resize] == [
        ('Resize', (224, 224), 'bilinear')
    ]
    # mmengine's Runner wants all of these or none
    training = [cfg.get(key) for key in ('train_dataloader', 'train_cfg', 'optim_wrapper')]
    assert all(training) or not any(training)


# DeiT's weights of the labels and of the teacher, and how the teacher's logits are read.
TOKENS = dict(
    hard=(0.5, 0.5, dict(teacher_target=dict(kind='onehot', anchor='argmax'))),
    soft=(0.9, 0.1, dict(tau=3)),
)


@pytest.mark.parametrize('kind', TOKENS)
@pytest.mark.parametrize(
    'name, smoothing',
    [
        ('transformers/deit-{}_regnety-16gf_deit-tiny_4xb256_in1k', 0.1),
        ('parts/deit-{}_resnet18-tiny_deit-micro_parts', 0),
        ('digits/deit-{}_resnet18_deit-micro_digits100', 0),
    ],
)
def test_token_distillation(name, smoothing, kind):
    cfg = read(f'{name.format(kind)}.py')
    label, token, options = TOKENS[kind]
    assert (cfg.model.student_weight, cfg.model.student.head.type) == (0, 'DeiTClsHead')
    assert cfg.model.terms.label.to_dict() == dict(
        type='LabelLoss',
        at='head.layers.head',
        weight=label,
        **(dict(label_smoothing=smoothing) if smoothing else {}),
    )
    assert cfg.model.terms.token.to_dict() == dict(
        type='KLDivLoss', at=('head.layers.head_dist', 'logits'), weight=token, **options
    )


TABLES = dict(
    cifar={f'{network}_cifar100' for network in NETWORKS},
    cat_kd={f'cat_{teacher}_{student}_cifar100' for teacher, student in CAT}
    | set(LABEL_FREE)
    | {'cat_resnet34_resnet18_8xb32_in1k', 'cat_resnet50_mobilenet-v2_8xb32_in1k'}
    | {'linear-probe_resnet8x4_stl10', 'linear-probe_resnet8x4_tiny-imagenet'},
    exp_kd={f'exp_{teacher}_{student}_cifar100' for teacher, student in EXP}
    | {'exp_resnet34_resnet18_8xb64_in1k'}
    | {'perturbation_resnet18_in1k', 'segmentation_resnet18'},
    kd={f'{method}_resnet32x4_resnet8x4_cifar100' for method in SHELF}
    | {f'sdd-dkd_{teacher}_{student}_cifar100' for teacher, student in SDD}
    | {f'ikl_{teacher}_{student}_cifar100' for teacher, student in IKL}
    | {f'{method}_{pair[0]}_{pair[1]}_cifar100' for method, (pair, _) in OTHER_PAIRS.items()}
    | {f'{method}_resnet34_resnet18_8xb{each[0]}_in1k' for method, each in IMAGENET.items()}
    | {'kd_resnet34_resnet18_8xb32_in1k', 'kd_resnet50_mobilenet-v2_8xb32_in1k'}
    | {'kd_swin-base_swin-tiny_16xb64_in1k', 'kd_resnet34_resnet18_stl10'}
    | {'embedding_dinov2-small_mobilenetv3_unlabelled'},
    transformers={f'deit-{kind}_regnety-16gf_deit-tiny_4xb256_in1k' for kind in TOKENS}
    | {'map_deit-small_deit-tiny_4xb256_in1k', 'map_swin-base_swin-tiny_16xb64_in1k'}
    | {'map_vit-base_resnet18_8xb32_in1k'},
)


@pytest.mark.parametrize('folder', TABLES)
def test_folders_hold_the_tables(folder):
    assert {path.stem for path in (CONFIGS / folder).glob('*.py')} == TABLES[folder]


def rows(folder):
    """The tables of a README, by config: the cells beside the link."""
    lines = (CONFIGS / folder / 'README.md').read_text().splitlines()
    cells = [[cell.strip() for cell in line.split('|')[1:-1]] for line in lines]
    return {row[0].partition('.py]')[0][1:]: row[1:] for row in cells if row and '.py]' in row[0]}


def test_pages_show_what_configs_hold():
    page = rows('cifar')
    for network, parameters in NETWORKS.items():
        row = page[f'{network}_cifar100']
        assert row[0] == f'{parameters:,}'
        assert row[2] == ('0.01' if network in LIGHT else '0.05')
        assert row[3] == ('yes' if network in RELEASED else '')
    page = rows('cat_kd')
    for (teacher, student), (lr, weight, resolution, normalize) in CAT.items():
        row = page[f'cat_{teacher}_{student}_cifar100']
        assert row[2:6] == [f'{lr:g}', f'{weight:g}', f'{resolution}', 'yes' if normalize else 'no']
    for name, (*_, weight, _) in LABEL_FREE.items():
        assert page[name][2] == f'{weight}'
    page = rows('exp_kd')
    for (teacher, student), (lr, batch_size, feat_weight, tau) in EXP.items():
        row = page[f'exp_{teacher}_{student}_cifar100']
        weight = f'{100 * batch_size * feat_weight:,.0f}'
        assert row[2:7] == [f'{lr:g}', f'{batch_size}', f'{feat_weight:g}', weight, f'{tau}']


def test_metafiles_list_configs_that_exist():
    imports = yaml.safe_load((ROOT / 'model-index.yml').read_text())['Import']
    assert sorted(imports) == sorted(
        str(path.relative_to(ROOT)) for path in CONFIGS.glob('*/metafile.yml')
    )
    names = []
    for path in imports:
        metafile = yaml.safe_load((ROOT / path).read_text())
        (collection,) = metafile['Collections']
        assert (ROOT / collection['README']).is_file()
        for model in metafile['Models']:
            assert model['In Collection'] == collection['Name']
            assert model['Config'] == f'{Path(path).parent}/{model["Name"]}.py'
            assert (ROOT / model['Config']).is_file()
            student = model['Metadata'].get('Student', model['Name'])
            if student.endswith('_cifar100'):
                parameters = NETWORKS[student.removesuffix('_cifar100')]
                assert model['Metadata']['Parameters'] == parameters
        names += [model['Name'] for model in metafile['Models']]
    assert len(set(names)) == len(names)
    for folder in ('cifar', 'cat_kd', 'exp_kd', 'kd'):
        tested = {'perturbation_resnet18_in1k', 'segmentation_resnet18'}
        probes = {name for name in TABLES[folder] if name.startswith('linear-probe')}
        assert TABLES[folder] - tested - probes <= set(names)


@pytest.mark.parametrize('name, classes', [('stl10', 10), ('tiny-imagenet', 200)])
def test_a_linear_probe_trains_the_classifier_alone(name, classes):
    cfg = Config.fromfile(CONFIGS / f'cat_kd/linear-probe_resnet8x4_{name}.py')
    assert cfg.optim_wrapper.optimizer.weight_decay == 0
    cfg.model.backbone.init_cfg = None
    model = build(cfg.model.to_dict()).train()
    before = {key: value.clone() for key, value in model.backbone.state_dict().items()}
    samples = [DataSample().set_gt_label(i) for i in range(4)]
    losses = model(torch.randn(4, 3, 32, 32), samples, mode='loss')
    losses['loss'].backward()
    trained = {key for key, value in model.named_parameters() if value.grad is not None}
    assert trained == {'head.fc.weight', 'head.fc.bias'}
    assert model.head.fc.out_features == classes
    assert all(
        torch.equal(value, before[key]) for key, value in model.backbone.state_dict().items()
    )
