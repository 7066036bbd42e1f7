"""Networks that a user names: their classes, their sizes, and their weights."""

import pytest
import torch
from networks import OwnNetwork
from torch import nn

from mmkdx.apis import user_networks
from mmkdx.apis.user_networks import class_map, common_side, user_network, with_weights

OWN = 'networks:OwnNetwork'


class Fixed(OwnNetwork):
    """A network that takes one size."""

    side = 160

    def forward(self, images):
        """Logits."""
        assert images.shape[2] == self.side
        return super().forward(images)


class Other(Fixed):
    """A network that takes another size."""

    side = 192


@pytest.fixture
def known_size(monkeypatch):
    """A family of networks that say the size that they take."""
    from dataclasses import replace

    from mmkdx.models import families

    monkeypatch.setattr(families, '_families', list(families._families))

    @families.register_family(lambda model: hasattr(model, 'side'))
    def facts(model):
        plain = families._torch(model)
        return replace(plain, images=families.ImageFormat(size=(model.side, model.side)))


def test_a_callable_keeps_its_classes():
    network = user_network(OWN, '--student')
    assert network.num_classes == 4 and network.with_classes(4) == OWN
    with pytest.raises(ValueError) as error:
        network.with_classes(6)
    assert str(error.value) == (
        "--student: networks:OwnNetwork returns a network of 4 classes; it must have the data's 6"
    )


def test_a_network_that_does_not_tell_its_classes_is_asked(monkeypatch):
    class Strange(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.ones(3, 9))

        def forward(self, images):
            return images.mean((2, 3)) @ self.weight

    monkeypatch.setattr('networks.Strange', Strange, raising=False)
    assert user_network('networks:Strange', '--student').num_classes == 9


def test_networks_of_configs(tmp_path, monkeypatch):
    head = "dict(type='LinearClsHead', num_classes=4, in_channels=4, loss=dict(type='CrossEntropyLoss'))"
    text = (
        "model = dict(type='ImageClassifier', backbone=dict(type='TinyBackbone', width=4), "
        f"neck=dict(type='GlobalAveragePooling'), head={head}, train_cfg=dict(augments=None))\n"
    )
    (tmp_path / 'own.py').write_text(text)
    monkeypatch.chdir(tmp_path)
    network = user_network('own.py', '--student')
    assert network.spec == str(tmp_path / 'own.py') and network.num_classes == 4
    found = network.with_classes(7)
    assert found['head']['num_classes'] == 7 and 'train_cfg' not in found
    assert network.with_classes(3)['head']['num_classes'] == 3
    smooth = "dict(type='LabelSmoothLoss', label_smooth_val=0.1, num_classes=4)"
    (tmp_path / 'own.py').write_text(text.replace("dict(type='CrossEntropyLoss')", smooth))
    changed = user_network('own.py', '--student').with_classes(7)
    assert changed['head']['loss']['num_classes'] == 7
    headless = text.replace('num_classes=4, ', '').replace('LinearClsHead', 'ClsHead')
    (tmp_path / 'own.py').write_text(headless.replace('in_channels=4, ', ''))
    with pytest.raises(ValueError, match='own.py has no model.head.num_classes'):
        user_network('own.py', '--student').with_classes(7)


@pytest.mark.parametrize(
    ('name', 'message'),
    [
        ('tim::resnet18', "there is no library 'tim'.*near names are timm"),
        ('timm::resnet81', 'timm has no such model; near names are .*resnet'),
        ('torchvision::resnet81', 'torchvision has no such classifier; near names are resnet'),
        ('resnet81_8xb32_in1k', "no model of mmpretrain's zoo .* near names are resnet"),
        ('networks:OwnNetwerk', "has no callable 'OwnNetwerk'; near names are OwnNetwork"),
        ('nowhere.py', 'no config file .*nowhere.py'),
    ],
)
def test_names_that_are_nothing(name, message):
    if name.startswith('timm'):
        pytest.importorskip('timm')
    with pytest.raises(ValueError, match=f'^--student.*{message}'):
        user_network(name, '--student')


def test_a_missing_library_is_named_with_its_extra(monkeypatch):
    monkeypatch.setitem(__import__('sys').modules, 'timm', None)
    with pytest.raises(ValueError, match="needs timm, which is not installed: .*extra 'libraries'"):
        user_network('timm::resnet18', '--teacher')


def test_weights_tell_the_number_of_classes(tmp_path):
    timm = pytest.importorskip('timm')
    network = user_network('timm::test_resnet', '--teacher')
    assert network.num_classes == 1000 and network.config == 'timm::test_resnet'
    file = tmp_path / 'weights.pth'
    torch.save(timm.create_model('test_resnet', num_classes=5).state_dict(), file)
    found, names = with_weights(network, str(file), '--checkpoint')
    assert found.num_classes == 5 and names is None
    assert found.config == dict(type='timm::test_resnet', num_classes=5)
    meta = dict(dataset_meta=dict(classes=['a', 'b', 'c', 'd', 'e']))
    state = found.facts.model.state_dict()
    torch.save(dict(state_dict=state, meta=meta), file)
    assert with_weights(network, str(file), '--checkpoint')[1] == ('a', 'b', 'c', 'd', 'e')
    # As many classes as the library's own
    torch.save(network.facts.model.state_dict(), file)
    assert with_weights(network, str(file), '--checkpoint')[0] is network


def test_files_that_are_no_weights(tmp_path):
    network, file = user_network(OWN, '--teacher'), str(tmp_path / 'x.pth')
    with pytest.raises(FileNotFoundError, match=f'^--checkpoint: there is no file {file}$'):
        with_weights(network, file, '--checkpoint')
    torch.save([1, 2], file)
    with pytest.raises(ValueError, match='x.pth holds a list and no state dict'):
        with_weights(network, file, '--checkpoint')
    torch.save(nn.Linear(2, 2).state_dict(), file)
    with pytest.raises(ValueError, match='^--checkpoint .*x.pth holds none of the '):
        with_weights(network, file, '--checkpoint')


@pytest.mark.parametrize(
    ('short_side', 'side'),
    [(1, 128), (96, 128), (128, 128), (150, 160), (175, 160), (177, 192), (224, 224), (900, 224)],
)
def test_the_side_follows_the_images(short_side, side):
    assert common_side(short_side, user_network(OWN, '--student')) == side


def test_a_network_of_one_size_decides(known_size, monkeypatch):
    for kind in (Fixed, Other):
        monkeypatch.setattr(f'networks.{kind.__name__}', kind, raising=False)
    own, one = user_network(OWN, '--student'), user_network('networks:Fixed', '--teacher')
    assert common_side(500, own, one) == 160
    assert common_side(20, own, one) == 160
    other = user_network('networks:Other', '--student')
    with pytest.raises(ValueError) as error:
        common_side(500, other, one)
    assert str(error.value) == (
        '--teacher cannot take images of 192 x 192 pixels with three channels (the networks need: '
        '--student 192); choose networks of one size'
    )


def network_of(count):
    """A network with a number of classes."""
    network = user_network(OWN, '--teacher')
    network.num_classes = count
    return network


@pytest.mark.parametrize(
    ('classes', 'count', 'names', 'found', 'sentence'),
    [
        (['a', 'b'], 2, ['a', 'b'], '', "The teacher has the data's classes, by name."),
        (['a', 'b'], 3, ['b', 'x', 'a'], 'match', "The teacher's 3 classes include the data's"),
        (['b', 'c'], 2, ['c', 'b'], 'match', "The teacher's 2 classes include the data's"),
        (
            ['a', 'b'],
            2,
            None,
            '',
            "are unknown; they are taken for the data's, in this order: a, b.",
        ),
        (['a', 'b'], 0, None, None, 'The teacher has no classifier.'),
        (['a', 'b'], 5, None, None, '2 of the 2 are not among them'),
        (
            ['cat', 'dogs'],
            3,
            ['cat', 'dog', 'fox'],
            None,
            "The teacher's 3 classes do not map to the data's: 1 of the 2 are not among them ('dogs'; "
            'near names are dog).',
        ),
        (['n01440764', 'n15075141'], 1000, None, dict(n01440764=0, n15075141=999), 'ImageNet'),
        (['Goldfish', 'tiger_cat'], 1000, None, dict(Goldfish=1, tiger_cat=282), 'ImageNet'),
        # A bird and a machine
        (['goldfish', 'crane'], 1000, None, None, "1 of the 2 are not among them ('crane'"),
        # Two names of one class
        (['tench', 'Tinca tinca'], 1000, None, None, "do not map to the data's: 0 of the 2"),
    ],
)
def test_classes_that_map_and_that_do_not(classes, count, names, found, sentence):
    value, said = class_map(classes, network_of(count), names)
    assert value == found and type(value) is type(found)
    assert sentence in said


def test_a_folder_of_hugging_face_holds_in_any_folder(tmp_path, monkeypatch):
    transformers = pytest.importorskip('transformers')
    names = {0: 'cat', 1: 'dog', 2: 'fox'}
    sizes = dict(embedding_size=4, hidden_sizes=[4], depths=[1], layer_type='basic')
    transformers.ResNetConfig(**sizes, id2label=names).save_pretrained(tmp_path / 'own')
    monkeypatch.chdir(tmp_path)
    network = user_network('hf::own', '--teacher')
    assert network.spec == f'hf::{tmp_path}/own' and network.facts.classes == ('cat', 'dog', 'fox')
    # A folder does not hide a type of models of the same name
    (tmp_path / 'resnet').mkdir()
    assert user_network('hf::resnet', '--teacher').spec == 'hf::resnet'


def test_a_folder_does_not_hide_a_name(tmp_path, monkeypatch):
    pytest.importorskip('timm')
    (tmp_path / 'test_resnet').mkdir()
    monkeypatch.chdir(tmp_path)
    assert user_network('timm::test_resnet', '--teacher').spec == 'timm::test_resnet'


def test_paths_hold_in_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert user_networks.absolute('a/b') == str(tmp_path / 'a/b')
    assert user_networks.absolute('https://a.org/b.pth') == 'https://a.org/b.pth'
    assert user_networks.absolute('~/x').startswith('/') and '~' not in user_networks.absolute('~')
