"""What a model is: each family, each head, each wrapper."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.model import BaseModel, BaseTTAModel, ExponentialMovingAverage
from tiny import build, classifier, distiller
from torch import nn
from torch.optim.swa_utils import AveragedModel

import mmkdx
from mmkdx.models import ImageFormat, ModelFacts, describe, register_family, unwrap
from mmkdx.models.families import _families, preprocessed
from mmkdx.models.intercept import evaluating, fake_forward

IMAGENET = ImageFormat(
    tuple(each * 255 for each in (0.485, 0.456, 0.406)),
    tuple(each * 255 for each in (0.229, 0.224, 0.225)),
    'rgb',
)


class Net(nn.Sequential):
    """A module that returns logits."""

    def __init__(self, classes=4):
        super().__init__(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, classes))


class Returns(nn.Module):
    """Returns what it is given, in place of logits."""

    def __init__(self, value):
        super().__init__()
        self.value = value

    def forward(self, images):
        return self.value


def mmpretrain(head='LinearClsHead', classes=4, **preprocessor):
    config = classifier(classes=classes)
    config['head'] = dict(type=head, num_classes=classes, in_channels=8)
    return build(dict(config, data_preprocessor=preprocessor))


def timm_model(name='test_resnet', **kwargs):
    return pytest.importorskip('timm').create_model(name, **kwargs)


def huggingface(**kwargs):
    transformers = pytest.importorskip('transformers')
    small = dict(embedding_size=4, hidden_sizes=[4, 8], depths=[1, 1], layer_type='basic')
    config = transformers.ResNetConfig(**{**small, 'num_labels': 4, **kwargs})
    return transformers.ResNetForImageClassification(config)


def vit(**kwargs):
    transformers = pytest.importorskip('transformers')
    config = transformers.ViTConfig(
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=8,
        image_size=32,
        **kwargs,
    )
    return transformers.ViTForImageClassification(config)


def torchvision_model(name='squeezenet1_1', **kwargs):
    return getattr(pytest.importorskip('torchvision.models'), name)(**kwargs)


NAMED = dict(id2label={1: 'dog', 0: 'cat'}, label2id={'dog': 1, 'cat': 0})

#: For each network: family, path of the logits, activation, images and names of classes.
TABLE = {
    'mmpretrain': (
        lambda: mmpretrain(mean=[1.0, 2, 3], std=[4.0, 5, 6], to_rgb=True),
        ('mmpretrain', 'head', 'softmax', ImageFormat((1, 2, 3), (4, 5, 6), 'rgb'), None),
    ),
    'mmpretrain without mean': (
        lambda: mmpretrain(),
        ('mmpretrain', 'head', 'softmax', ImageFormat(), None),
    ),
    'several labels': (
        lambda: mmpretrain('MultiLabelLinearClsHead'),
        ('mmpretrain', 'head', 'sigmoid', ImageFormat(), None),
    ),
    'one logit': (
        lambda: mmpretrain(classes=1),
        ('mmpretrain', 'head', 'sigmoid', ImageFormat(), None),
    ),
    'timm': (
        lambda: timm_model(num_classes=4),
        (
            'timm',
            '',
            'softmax',
            ImageFormat((127.5,) * 3, (127.5,) * 3, 'rgb', (160, 160)),
            None,
        ),
    ),
    'timm, another size': (
        lambda: timm_model('test_vit', num_classes=1, img_size=(32, 48)),
        ('timm', '', 'sigmoid', ImageFormat((127.5,) * 3, (127.5,) * 3, 'rgb', (32, 48)), None),
    ),
    'timm, named classes': (
        lambda: timm_model(
            num_classes=2,
            pretrained_cfg_overlay=dict(
                label_names={'1': 'n2', '0': 'n1'}, label_descriptions=dict(n1='cat')
            ),
        ),
        (
            'timm',
            '',
            'softmax',
            ImageFormat((127.5,) * 3, (127.5,) * 3, 'rgb', (160, 160)),
            ('cat', 'n2'),
        ),
    ),
    'timm, one channel': (
        lambda: timm_model(num_classes=4, in_chans=1),
        ('timm', '', 'softmax', ImageFormat(order='rgb', size=(160, 160)), None),
    ),
    'Hugging Face': (
        lambda: huggingface(),
        ('huggingface', '', 'softmax', ImageFormat(order='rgb'), None),
    ),
    'Hugging Face, several labels': (
        lambda: vit(problem_type='multi_label_classification', **NAMED),
        ('huggingface', '', 'sigmoid', ImageFormat(order='rgb', size=(32, 32)), ('cat', 'dog')),
    ),
    'torchvision': (
        lambda: torchvision_model('shufflenet_v2_x0_5', num_classes=4),
        ('torchvision', '', 'softmax', IMAGENET, None),
    ),
    'torchvision, weights disagree': (
        lambda: torchvision_model('efficientnet_b0', num_classes=4),
        ('torchvision', '', 'softmax', ImageFormat(order='rgb'), None),
    ),
    'any module': (lambda: Net(), ('torch', '', 'softmax', ImageFormat(), None)),
    'any module with one logit': (lambda: Net(1), ('torch', '', 'sigmoid', ImageFormat(), None)),
}


@pytest.mark.parametrize('name', TABLE)
def test_facts(name):
    make, expected = TABLE[name]
    model = make()
    facts = describe(model)
    assert facts.model is model
    known = facts.family, facts.logits_path, facts.activation, facts.images, facts.classes
    assert known == expected


@pytest.mark.parametrize('name', [name for name in TABLE if 'efficientnet' not in name])
def test_logits_are_those_of_the_forward(name):
    model = TABLE[name][0]().eval()
    facts = describe(model)
    size = facts.images.size if name == 'timm, another size' else (32, 32)
    images = torch.randn(2, 1 if 'one channel' in name else 3, *size)
    seen = []
    module = facts.model.get_submodule(facts.logits_path)
    with torch.no_grad(), module.register_forward_hook(lambda *args: seen.append(args[2])):
        logits = facts.logits(images)
        assert torch.equal(facts.logits_in(seen[0]), logits)
        plain = model(images)
    assert torch.equal(logits, getattr(plain, 'logits', plain))
    one = logits.shape[1] == 1
    expected = logits.sigmoid() if one or facts.activation == 'sigmoid' else logits.softmax(1)
    assert torch.equal(facts.probabilities(logits), expected)


def test_probabilities_by_hand():
    softmax, sigmoid = describe(Net()), describe(mmpretrain('MultiLabelLinearClsHead'))
    logits = torch.tensor([[0.0, float(np.log(3))]])
    torch.testing.assert_close(softmax.probabilities(logits), torch.tensor([[0.25, 0.75]]))
    torch.testing.assert_close(sigmoid.probabilities(logits), torch.tensor([[0.5, 0.75]]))
    # A network of one logit may be known by its logits only
    one = ModelFacts('mine', Net()).probabilities(torch.tensor([[-3.0]], dtype=torch.bfloat16))
    torch.testing.assert_close(one, torch.tensor([[0.0474259]]))


@pytest.mark.parametrize('kind', ['TimmClassifier', 'HuggingFaceClassifier'])
def test_networks_in_mmpretrains_wrappers(kind, tmp_path):
    if kind == 'TimmClassifier':
        pytest.importorskip('timm')
        model = build(dict(type=kind, model_name='test_resnet', num_classes=4))
        images = ImageFormat((127.5,) * 3, (127.5,) * 3, 'rgb', (160, 160))
    else:
        network = vit(**NAMED)
        network.config.save_pretrained(tmp_path)
        model, images = build(dict(type=kind, model_name=str(tmp_path))), ImageFormat(size=(32, 32))
    facts = describe(model.eval())
    assert (facts.family, facts.logits_path, facts.images) == ('mmpretrain', 'model', images)
    assert facts.classes == (('cat', 'dog') if kind.startswith('Hugging') else None)
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(facts.logits(x), model(x))
        assert torch.equal(facts.logits_in(model.model(x)), model(x))
    # The preprocessor of mmpretrain has no mean, whatever the network expects
    assert preprocessed(model) == ImageFormat()
    model.data_preprocessor = mmpretrain(mean=[1.0] * 3, std=[2.0] * 3).data_preprocessor
    assert describe(model).images.mean == (1, 1, 1)


def test_a_processor_says_what_it_does_with_images():
    model = huggingface()

    class Processor:
        image_mean, image_std, rescale_factor = [0.5, 0.4, 0.3], [0.1, 0.2, 0.25], 1 / 255

    model.image_processor = Processor()
    images = describe(model).images
    assert images.mean == pytest.approx((127.5, 102, 76.5))
    assert images.std == pytest.approx((25.5, 51, 63.75))
    Processor.do_normalize = False
    assert describe(model).images == ImageFormat((0, 0, 0), (255, 255, 255), 'rgb')
    Processor.do_rescale = False
    assert describe(model).images == ImageFormat((0, 0, 0), (1, 1, 1), 'rgb')


def test_torchvisions_weights_are_asked():
    models = pytest.importorskip('torchvision.models')
    model = models.efficientnet_v2_s(num_classes=1000)
    model.weights = models.EfficientNet_V2_L_Weights.DEFAULT
    facts = describe(model)
    assert facts.images.mean == facts.images.std == (127.5, 127.5, 127.5)
    assert facts.classes[:2] == ('tench', 'goldfish')


def test_branches_are_summed_and_other_values_refused():
    one, two = torch.randn(2, 3), torch.randn(2, 3)
    facts = ModelFacts('mine', Net())
    assert torch.equal(facts.logits_in((one, two)), one + two)
    assert torch.equal(facts.logits_in(dict(logits=one, features=two)), one)
    for value, word in [
        (torch.zeros(2, 3, 4), r'Tensor of shape \(2, 3, 4\)'),
        ((one, two[:, :1]), 'tuple'),
        ({'a': one}, 'dict'),
        (None, 'NoneType'),
    ]:
        with pytest.raises(ValueError, match=f'Returns returns a {word}, and a .*register_family'):
            describe(Returns(value)).logits(torch.zeros(1, 3, 2, 2))


def test_conformers_branches():
    head = dict(type='ConformerHead', num_classes=4, in_channels=[8, 8])
    head = build(head).eval()
    facts = ModelFacts('mmpretrain', head)
    features = torch.randn(2, 8), torch.randn(2, 8)
    output = head(([*features],))
    assert isinstance(output, tuple)
    scores = torch.stack([each.pred_score for each in head.predict(([*features],))])
    torch.testing.assert_close(facts.probabilities(facts.logits_in(output)), scores)


def test_an_exchanged_head_is_seen():
    model = mmpretrain()
    assert describe(model).activation == 'softmax'
    model.head = mmpretrain('MultiLabelLinearClsHead').head
    assert describe(model).activation == 'sigmoid'
    model.data_preprocessor = mmpretrain(mean=[1.0] * 3, std=[2.0] * 3).data_preprocessor
    assert describe(model).images.std == (2, 2, 2)
    model.data_preprocessor.std.mul_(2)
    assert describe(model).images.std == (4, 4, 4)


class TTA(BaseTTAModel):
    def merge_preds(self, data_samples_list):
        return data_samples_list


WRAPPERS = dict(
    parallel=nn.DataParallel,
    compiled=torch.compile,
    average=ExponentialMovingAverage,
    swa=AveragedModel,
    tta=TTA,
    nested=lambda model: nn.DataParallel(torch.compile(TTA(torch.compile(model)))),
)


@pytest.mark.parametrize('name', WRAPPERS)
def test_wrappers_come_off(name):
    model = mmpretrain(mean=[1.0] * 3, std=[2.0] * 3).eval()
    wrapped = WRAPPERS[name](model)
    facts = describe(wrapped)
    assert type(facts.model) is type(model) and facts.images.mean == (1, 1, 1)
    assert (facts.model is model) == (name not in ('average', 'swa'))
    x = torch.randn(2, 3, 8, 8)
    assert torch.equal(facts.logits(x), model(x))


def test_a_distiller_is_its_student():
    model = distiller()
    assert describe(torch.compile(model)).model is model.student
    assert unwrap(nn.DataParallel(model)) is model


def test_a_script_module_is_refused():
    for script in (torch.jit.script(Net()), torch.jit.trace(Net(), torch.zeros(1, 3, 4, 4))):
        with pytest.raises(
            ValueError, match='a ScriptModule, whose layers cannot be read; pass the'
        ):
            describe(nn.DataParallel(script))


def test_shapes_can_be_found_without_reading_numbers():
    model = mmpretrain(mean=[1.0] * 3, std=[2.0] * 3)
    with fake_forward(model):
        facts = describe(model)
        assert facts.images.mean == (1, 1, 1)
        assert facts.logits(torch.empty(2, 3, 8, 8)).shape == (2, 4)
    assert describe(model.to('meta')).images.mean is None


@pytest.mark.parametrize(
    'values, message',
    [
        (dict(mean=[1.0] * 3, std=[1.0, 0, 1]), 'data_preprocessor.std is 0.0; .* above 0'),
        (dict(mean=[float('nan')] * 3, std=[1.0] * 3), 'data_preprocessor.mean is nan; .* finite'),
    ],
)
def test_a_preprocessor_that_divides_by_zero_is_refused(values, message):
    with pytest.raises(ValueError, match=message):
        describe(mmpretrain(**values))


def test_a_plugins_family_is_asked_first():
    class Pair(nn.Module):
        def forward(self, images):
            return images.mean((2, 3)), 'features'

    class PairFacts(ModelFacts):
        def logits_in(self, output):
            return output[0]

    @register_family(lambda model: isinstance(model, Pair))
    def pair(model):
        return PairFacts('pair', model, classes=('r', 'g', 'b'))

    try:
        facts = describe(nn.DataParallel(Pair()))
        assert (facts.family, facts.classes) == ('pair', ('r', 'g', 'b'))
        assert torch.equal(facts.logits(torch.ones(2, 3, 4, 4)), torch.ones(2, 3))
        assert describe(Net()).family == 'torch'
    finally:
        _families.pop()


def test_other_models_of_mmengine():
    class Plain(BaseModel):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(3, 2)

        def forward(self, inputs, data_samples=None, mode='tensor'):
            return self.fc(inputs.mean((2, 3)))

    facts = describe(Plain())
    assert (facts.family, facts.logits_path, facts.activation) == ('mmpretrain', '', 'softmax')
    assert facts.logits(torch.ones(2, 3, 4, 4)).shape == (2, 2)


def test_names_of_a_model_of_the_zoo():
    model = mmpretrain()
    model._dataset_meta = dict(classes=['a', 'b', 'c', 'd'])
    assert describe(model).classes == ('a', 'b', 'c', 'd')


def test_the_mode_and_the_input_stay():
    model = nn.Sequential(nn.ReLU(inplace=True), Net())
    x = -torch.ones(2, 3, 4, 4)
    describe(model).logits(x)
    assert (x == -1).all() and model.training
    with evaluating(model):
        describe(model).logits(x.requires_grad_())


def test_optional_packages_are_imported_by_no_module():
    for path in Path(mmkdx.__file__).parent.rglob('*.py'):
        for line in path.read_text().splitlines():
            assert not re.match(r'(import|from) (timm|transformers|open_clip)\b', line), path
