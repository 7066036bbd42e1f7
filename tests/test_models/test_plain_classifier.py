"""Networks of other libraries as students: logits, steps and checkpoints are the library's own."""

import copy
import logging

import pytest
import torch
import torch.nn.functional as F
from mmengine.logging import MMLogger
from mmengine.model import ExponentialMovingAverage
from mmengine.runner import load_checkpoint
from mmpretrain.evaluation import Accuracy
from mmpretrain.structures import DataSample
from networks import OwnNetwork, spec_of
from tiny import batch, build, classifier, distiller, run_ranks
from torch import nn
from torch._dynamo.testing import CompileCounter

from mmkdx.distillation.models import build_model, build_student, load_weights
from mmkdx.models import describe
from mmkdx.models.plain_classifier import PlainClassifier

NORMAL = dict(mean=[127.5] * 3, std=[127.5] * 3, to_rgb=True)


def own(**kwargs):
    torch.manual_seed(0)
    return build(dict(type='PlainClassifier', network=OwnNetwork(), **kwargs))


@pytest.fixture(scope='module')
def network():
    """A student, the same network of the library, and images; others are in test_networks.py."""
    torch.manual_seed(0)
    student, plain = build_student(OwnNetwork(), NORMAL), OwnNetwork()
    plain.load_state_dict(student.state_dict())
    return student, plain, batch(4, 16)


def logits_of(plain, images):
    output = plain(images)
    return getattr(output, 'logits', output)


def test_logits_and_names_of_tensors_are_the_librarys(network):
    student, plain, (images, samples) = network
    assert list(student.state_dict()) == list(plain.state_dict())
    student.eval(), plain.eval()
    expected = logits_of(plain, images)
    assert torch.equal(student(images), expected)
    facts = describe(student)
    assert torch.equal(facts.logits(images), expected)
    assert facts.num_classes == 4 and facts.activation == 'softmax'
    assert facts.images.mean == (127.5,) * 3
    found = student(images, copy.deepcopy(samples), mode='predict')
    scores = torch.stack([each.pred_score for each in found])
    torch.testing.assert_close(scores, expected.softmax(1))
    assert [int(each.pred_label) for each in found] == scores.argmax(1).tolist()


def test_a_runs_checkpoint_is_the_networks(network, tmp_path):
    """Bit for bit: the library loads it strictly, and so do the student, a distiller and an average."""
    student, plain, (images, _) = network
    model = distiller(student=copy.deepcopy(student), input_size=images.shape[2])
    with torch.no_grad():
        for parameter in model.student.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    state = model.state_dict()
    assert list(state) == list(plain.state_dict())
    torch.save(dict(state_dict=state), tmp_path / 'epoch_1.pth')
    loaded = copy.deepcopy(plain)
    loaded.load_state_dict(torch.load(tmp_path / 'epoch_1.pth')['state_dict'])
    expected = logits_of(loaded.eval(), images)
    other = distiller(student=copy.deepcopy(student), input_size=images.shape[2])
    load_checkpoint(other, str(tmp_path / 'epoch_1.pth'), strict=True)
    assert torch.equal(other.eval()(images), expected)
    alone = copy.deepcopy(student)
    load_weights(alone, torch.load(tmp_path / 'epoch_1.pth'), 'file')
    assert torch.equal(alone.eval()(images), expected)
    average = ExponentialMovingAverage(other)
    assert torch.equal(average.module.eval()(images), expected)
    assert {key.removeprefix('module.') for key in average.state_dict()} == {*state, 'steps'}


class Versioned(OwnNetwork):
    """A network that converts weights of older versions, as torchvision's MNASNet does."""

    _version = 2

    def _load_from_state_dict(self, state, prefix, metadata, *args):
        assert metadata['version'] == 2
        super()._load_from_state_dict(state, prefix, metadata, *args)


def test_versions_of_modules_are_kept(tmp_path):
    """Of the network and its parts, from a library's file, a student's and a distiller's."""
    plain = Versioned()
    models = [
        plain,
        build(dict(type='PlainClassifier', network=Versioned())),
        distiller(student=Versioned(), input_size=16),
    ]
    for source in models:
        torch.save(source.state_dict(), tmp_path / 'a.pth')
        for model in models:
            model.load_state_dict(torch.load(tmp_path / 'a.pth'))
            load_checkpoint(model, str(tmp_path / 'a.pth'), strict=True)
        load_weights(plain, torch.load(tmp_path / 'a.pth'), 'file')
        load_weights(models[1], torch.load(tmp_path / 'a.pth'), 'file')


class Nested(nn.Module):
    """A network with tensors of the same names below parts called ``model`` and ``student``."""

    def __init__(self):
        super().__init__()
        self.model, self.fc, self.student = nn.Module(), nn.Linear(3, 4), nn.Module()
        self.model.fc, self.student.fc = nn.Linear(3, 4), nn.Linear(3, 4)
        self.model.model, self.student.model = nn.Module(), nn.Module()
        self.model.model.fc, self.student.model.fc = nn.Linear(3, 4), nn.Linear(3, 4)

    def forward(self, images):
        inputs = images.mean((2, 3))
        return sum(each(inputs) for each in self.modules() if isinstance(each, nn.Linear))


def test_parts_may_be_called_as_mmkdx_calls_its_own(tmp_path):
    student = build(dict(type='PlainClassifier', network=Nested()))
    expected = student.model.state_dict()
    other, model = Nested(), distiller(student=student)
    for saved in (student.state_dict(), model.state_dict()):
        assert list(saved) == list(expected)
        other.load_state_dict(saved)
        assert all(torch.equal(value, expected[key]) for key, value in other.state_dict().items())
    for loaded in (
        build(dict(type='PlainClassifier', network=Nested())),
        distiller(student=Nested()),
    ):
        loaded.load_state_dict(expected)
        assert all(torch.equal(value, expected[key]) for key, value in loaded.state_dict().items())


def test_files_that_do_not_fit_are_counted():
    """A model that takes a prefix off its state dict, as mmpretrain's of timm does, counts rightly."""
    models = [own()]
    if pytest.importorskip('timm'):
        models.append(build(dict(type='TimmClassifier', model_name='test_resnet', num_classes=4)))
    for model in models:
        state = model.state_dict()
        names = list(state)
        first = state.pop(names[0])
        with pytest.raises(ValueError, match=rf"1 tensors are missing \(as \['{names[0]}'\]\)"):
            load_weights(model, state, 'file')
        message = r"0 tensors are missing \(as \[\]\) and 1 unknown \(as \['other'\]\)"
        with pytest.raises(ValueError, match=message):
            load_weights(model, {**state, names[0]: first, 'other': first}, 'file')
        with pytest.raises(ValueError, match='file holds none of the'):
            load_weights(model, dict(other=first), 'file', strict=False)


def test_the_data_preprocessor_is_the_librarys():
    model = build_student('torchvision::shufflenet_v2_x0_5', dict(num_classes=7))
    own = model.data_preprocessor
    torch.testing.assert_close(own.mean.flatten(), torch.tensor([123.675, 116.28, 103.53]))
    assert own.to_rgb and own.num_classes == 7 and model.model.fc.out_features == 7
    image = torch.randint(0, 256, (3, 8, 8), dtype=torch.uint8)
    data = own(dict(inputs=[image], data_samples=[DataSample()]))
    expected = (image.flip(0).float() - own.mean) / own.std
    assert torch.equal(data['inputs'][0], expected)
    # What the config says is kept
    own = build_student('torchvision::resnet18', dict(NORMAL, to_rgb=False)).data_preprocessor
    assert own.mean.flatten().tolist() == [127.5] * 3 and not own.to_rgb
    own = build_student('torchvision::resnet18', dict(to_rgb=False)).data_preprocessor
    assert own.mean is not None and not own.to_rgb and own.num_classes == 1000


def test_an_unknown_normalisation_is_warned_of(caplog):
    logger = MMLogger.get_current_instance()
    logger.addHandler(caplog.handler)
    own()
    own(data_preprocessor=dict(mean=None))
    own(data_preprocessor=NORMAL)
    logger.removeHandler(caplog.handler)
    found = [each.getMessage() for each in caplog.records if each.levelno == logging.WARNING]
    assert len(found) == 1 and 'the normalisation of OwnNetwork is unknown' in found[0]


def test_losses():
    images, samples = batch(4, 16)
    labels = torch.tensor([int(each.gt_label) for each in samples])
    logits = own().eval()(images)
    smooth = own(loss=dict(type='LabelSmoothLoss', label_smooth_val=0.1)).eval()
    found = smooth(images, samples, mode='loss')['loss']
    torch.testing.assert_close(found, F.cross_entropy(logits, labels, label_smoothing=0.1))

    mixed = own(train_cfg=dict(augments=dict(type='Mixup', alpha=1.0))).eval()
    torch.manual_seed(1)
    data = mixed.data_preprocessor(dict(inputs=images, data_samples=samples), True)
    scores = torch.stack([each.gt_score for each in data['data_samples']])
    assert ((scores > 0) & (scores < 1)).any() and scores.shape == (4, 4)
    found = mixed(**data, mode='loss')['loss']
    torch.testing.assert_close(found, F.cross_entropy(mixed(data['inputs']), scores))


@pytest.mark.parametrize(
    'loss',
    [
        dict(type='CrossEntropyLoss', use_sigmoid=True),
        dict(type='LabelSmoothLoss', label_smooth_val=0.0, mode='multi_label', num_classes=4),
    ],
)
def test_several_labels(loss):
    images, _ = batch(2, 16)
    samples = [DataSample().set_gt_label([0, 2]), DataSample().set_gt_label([3])]
    model = own(loss=loss).eval()
    assert describe(model).activation == 'sigmoid'
    truth = torch.tensor([[1.0, 0, 1, 0], [0, 0, 0, 1]])
    expected = F.binary_cross_entropy_with_logits(model(images), truth, reduction='sum') / 2
    found = model(images, samples, mode='loss')['loss']
    # mmpretrain's average over images, or over images and classes
    torch.testing.assert_close(found, expected)
    for sample, scores in zip(model(images, samples, mode='predict'), model(images).sigmoid()):
        assert sample.pred_label.tolist() == (scores >= 0.5).nonzero().flatten().tolist()
    kd = dict(type='KLDivLoss', at='logits', activation='sigmoid')
    taught = distiller(dict(kd=kd), student=model, teacher=own(loss=loss), input_size=16)
    assert set(taught(images, samples, mode='loss')) == {'student.loss', 'loss_kd'}


def test_hugging_faces_problem_type_says_it():
    pytest.importorskip('transformers')
    spec, _ = spec_of('hf::ViTConfig')
    model = build_student(dict(spec, problem_type='multi_label_classification'), NORMAL)
    assert type(model.scoring).__name__ == 'MultiLabelClsHead'
    assert describe(model).activation == 'sigmoid' and describe(model).images.size == (32, 32)


def test_weights_stay_as_the_library_made_them():
    """timm's networks have an ``init_weights`` that mmengine would call."""
    pytest.importorskip('timm')
    spec, side = spec_of('timm::test_vit')
    model = distiller(student=spec, teacher=OwnNetwork(), input_size=side, data_preprocessor=NORMAL)
    before = copy.deepcopy(model.state_dict())
    assert hasattr(model.student.model, 'init_weights')
    model.init_weights()
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_init_cfg_loads_weights(tmp_path):
    source = OwnNetwork()
    torch.save(source.state_dict(), tmp_path / 'a.pth')
    model = own(init_cfg=dict(type='Pretrained', checkpoint=str(tmp_path / 'a.pth')))
    model.init_weights()
    assert torch.equal(model.model.fc.weight, source.fc.weight)


def test_a_module_is_a_student_as_it_is():
    network = OwnNetwork()
    before = network.fc.weight.detach().clone()
    model = distiller(
        student=network, teacher=OwnNetwork(), input_size=16, data_preprocessor=NORMAL
    )
    model.init_weights()
    assert model.student.model is network and torch.equal(network.fc.weight, before)
    assert list(model.state_dict()) == list(network.state_dict())
    compiled = build_student(torch.compile(OwnNetwork()))
    assert list(compiled.state_dict()) == list(network.state_dict())


def test_the_size_of_images_is_the_networks():
    spec, _ = spec_of('timm::test_vit')
    model = distiller(student=spec, input_size=None, teacher=dict(model=classifier(8)))
    assert model._probed == {(32, 32)}


def test_accuracy_of_mmpretrain():
    images, samples = batch(8, 16)
    model = own().eval()
    metric = Accuracy()
    metric.process({}, [each.to_dict() for each in model(images, samples, mode='predict')])
    labels = torch.tensor([int(each.gt_label) for each in samples])
    right = (model(images).argmax(1) == labels).float().mean()
    assert metric.compute_metrics(metric.results)['top1'] == pytest.approx(100 * float(right))


def test_autocast_and_compiling():
    images, samples = batch(4, 16)
    model = distiller(student=OwnNetwork(), input_size=16).eval()
    expected = sum(model(images, samples, mode='loss').values())
    with torch.autocast('cpu', torch.bfloat16):
        losses = model(images, samples, mode='loss')
    assert all(value.dtype == torch.float32 for value in losses.values())
    torch.testing.assert_close(sum(losses.values()), expected, rtol=0.05, atol=0.05)
    counted = CompileCounter()
    whole = torch.compile(model.student, backend=counted, fullgraph=True)
    torch.testing.assert_close(whole(images), model(images))
    assert counted.frame_count == 1
    compiled = distiller(
        student=copy.deepcopy(model.student), input_size=16, compile=dict(backend='eager')
    ).eval()
    compiled.teachers[0].model.load_state_dict(model.teachers[0].model.state_dict())
    torch.testing.assert_close(sum(compiled(images, samples, mode='loss').values()), expected)


#: The gradient of a step over a batch, divided among the ranks.
RANKS = """
import os
import sys
import torch
import torch.distributed as dist
from mmengine.model import MMDistributedDataParallel
from networks import OwnNetwork
from tiny import batch, distiller

path, rank, world = sys.argv[1], *map(int, sys.argv[2:])
dist.init_process_group('gloo', f'file://{path}.store', rank=rank, world_size=world)
torch.manual_seed(0)
model = distiller(student=OwnNetwork(), input_size=16).eval()  # without statistics of a batch
images, samples = batch(8, 16)
sum(model(images, samples, mode='loss').values()).backward()
whole = [parameter.grad.clone() for parameter in model.parameters()]
model.zero_grad()
wrapped = MMDistributedDataParallel(model)
part = slice(rank * 4, rank * 4 + 4)
sum(wrapped(images[part], samples[part], mode='loss').values()).backward()
torch.save([whole, [each.grad for each in model.parameters()], list(wrapped.module.state_dict())],
           f'{path}.{rank}')
dist.barrier()
os._exit(0)  # a thread of gloo may outlive the interpreter, which then aborts with all done
"""


#: A student whose parts are shared out, and what its checkpoint holds.
SHARED = """
import os
import sys
import torch
import torch.distributed as dist
from torch.distributed.fsdp import FullStateDictConfig, FullyShardedDataParallel, StateDictType
from functools import partial
from torch.distributed.fsdp.wrap import size_based_auto_wrap_policy
from mmkdx.distillation import FullyShardedDistiller
from networks import OwnNetwork
from tiny import batch, distiller

path, rank, world = sys.argv[1], *map(int, sys.argv[2:])
os.environ['LOCAL_RANK'] = str(rank)
dist.init_process_group('gloo', f'file://{path}.store', rank=rank, world_size=world)
torch.manual_seed(0)
model = distiller(student=OwnNetwork(), input_size=16).eval()
before = {key: value.clone() for key, value in model.state_dict().items()}
policy = partial(size_based_auto_wrap_policy, min_num_params=20)
wrapped = FullyShardedDistiller(model, auto_wrap_policy=policy, device_id=torch.device('cpu'))
full = FullyShardedDataParallel.state_dict_type(
    wrapped, StateDictType.FULL_STATE_DICT, FullStateDictConfig(rank0_only=False))
with full:
    after = {key: value.clone() for key, value in wrapped.state_dict().items()}
    wrapped.load_state_dict({key: value + 1 for key, value in before.items()})
    loaded = {key: value.clone() for key, value in wrapped.state_dict().items()}
torch.save([before, after, loaded], f'{path}.{rank}')
dist.barrier()
os._exit(0)
"""


@pytest.mark.slow
def test_a_shared_out_student_has_the_networks_names(tmp_path):
    for before, after, loaded in run_ranks(SHARED, tmp_path / 'shared', 2):
        assert list(before) == list(OwnNetwork().state_dict())
        assert before.keys() == after.keys() == loaded.keys()
        for key, value in before.items():
            assert torch.equal(after[key], value) and torch.equal(loaded[key], value + 1)


@pytest.mark.slow
def test_two_processes_train_as_one(tmp_path):
    for whole, shared, names in run_ranks(RANKS, tmp_path / 'two', 2):
        for one, other in zip(whole, shared, strict=True):
            torch.testing.assert_close(one, other)
        assert names == list(OwnNetwork().state_dict())


@pytest.mark.parametrize(
    'arguments, message',
    [
        (
            dict(network=OwnNetwork(1)),
            'network: OwnNetwork has one logit, and the losses and metrics',
        ),
        (
            dict(network=OwnNetwork(), num_classes=3),
            'takes no num_classes if the network is already built',
        ),
        (
            dict(network=build(classifier())),
            'network is a ImageClassifier, which has the interface of mmengine already',
        ),
        (
            dict(network='torchvision::mobilenet_v3_small', trai_ncfg=None),
            'PlainClassifier takes no trai_ncfg; do you mean train_cfg',
        ),
        (dict(network=3), 'network is 3; it must be a name such as timm::resnet18, or a module'),
    ],
)
def test_what_is_no_plain_network_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        build(dict(type='PlainClassifier', **arguments))


def test_modes_and_shapes_are_checked():
    model = own()
    with pytest.raises(
        ValueError, match="mode is 'train'; it must be 'tensor', 'predict' or 'loss'"
    ):
        model(batch()[0], mode='train')
    wrong = build(dict(type='PlainClassifier', network=nn.Conv2d(3, 4, 1)))
    with pytest.raises(ValueError, match=r'Conv2d returns a Tensor of shape \(6, 4, 8, 8\), and a'):
        wrong(*batch(), mode='loss')


def test_a_registered_classifier_needs_none():
    assert not isinstance(build_model(classifier(), 'student'), PlainClassifier)
