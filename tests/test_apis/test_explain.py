"""The inferencer, and the command line tool that uses it."""

import os
import re
import resource
import shutil
import sys
import tracemalloc
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import torchvision
from campaign.hostile_files import IMAGES
from mmengine.config import Config
from mmpretrain import get_model
from tiny import build, classifier, tool

from mmkdx.apis import ExplainInferencer
from mmkdx.explain import GradCAM
from mmkdx.files import WriteError

PREPROCESSOR = dict(num_classes=4, mean=[100.0, 120.0, 140.0], std=[50.0, 60.0, 70.0], to_rgb=True)
PIPELINE = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=(16, 16)),
    dict(type='PackInputs'),
]


@pytest.fixture(scope='module')
def home(tmp_path_factory) -> Path:
    """A config and checkpoint of a distillation, and a folder of images."""
    home = tmp_path_factory.mktemp('home')
    student = dict(classifier(4), data_preprocessor=PREPROCESSOR)
    # Another order of channels and another normalisation, to be bridged
    other = dict(num_classes=4, mean=[0.0] * 3, std=[255.0] * 3, to_rgb=False)
    teacher = dict(classifier(8), data_preprocessor=other)
    torch.manual_seed(3)
    torch.save(build(teacher).state_dict(), home / 'teacher.pth')
    config = Config(
        dict(
            default_scope='mmkdx',
            custom_imports=dict(imports=['tiny']),
            model=dict(
                type='Distiller',
                student=student,
                input_size=16,
                teacher=dict(model=teacher, checkpoint=str(home / 'teacher.pth')),
                terms=dict(kd=dict(type='KLDivLoss', at='logits')),
            ),
            test_dataloader=dict(dataset=dict(type='CustomDataset', pipeline=PIPELINE)),
        )
    )
    config.dump(home / 'distill.py')
    config.model = student
    config.dump(home / 'student.py')
    torch.manual_seed(4)
    meta = dict(dataset_meta=dict(classes=['ant', 'bee', 'cat', 'dog']))
    weights = build(student).state_dict()
    torch.save(dict(state_dict=weights, meta=meta), home / 'student.pth')
    (home / 'images' / 'more').mkdir(parents=True)
    random = np.random.RandomState(0)
    for name, size in (('b.png', (20, 30)), ('a.jpg', (16, 16)), ('more/a.png', (40, 20))):
        image = random.randint(0, 255, (*size, 3), np.uint8)
        cv2.imwrite(str(home / 'images' / name), image)
    (home / 'images' / 'notes.txt').write_text('no image')
    return home


@pytest.fixture(scope='module')
def inferencer(home) -> ExplainInferencer:
    return ExplainInferencer(str(home / 'distill.py'), str(home / 'student.pth'))


def by_hand(home: Path, name: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Maps of student and teacher for the teacher's class, and its logits, written out."""
    image = cv2.resize(cv2.imread(str(home / 'images' / name)), (16, 16))
    bgr = torch.from_numpy(image).permute(2, 0, 1)[None].float()
    mean, std = (torch.tensor(PREPROCESSOR[key]).view(1, 3, 1, 1) for key in ('mean', 'std'))
    student = build(classifier(4)).eval()
    student.load_state_dict(torch.load(home / 'student.pth')['state_dict'])
    teacher = build(classifier(8)).eval()
    teacher.load_state_dict(torch.load(home / 'teacher.pth'))
    logits = teacher(bgr / 255, mode='tensor')
    target = int(logits.argmax())
    return (
        GradCAM()(student, (bgr.flip(1) - mean) / std, target)[0],
        GradCAM()(teacher, bgr / 255, target)[0],
        logits[0],
    )


def test_maps_and_predictions_are_those_of_the_models(home, inferencer):
    results = inferencer(str(home / 'images'))
    assert [Path(result['input']).name for result in results] == ['a.jpg', 'b.png']
    for result in results:
        student, teacher, logits = by_hand(home, Path(result['input']).name)
        np.testing.assert_allclose(result['maps']['student'], student, rtol=1e-4, atol=1e-7)
        np.testing.assert_allclose(result['maps']['teacher'], teacher, rtol=1e-4, atol=1e-7)
        label = int(logits.argmax())
        assert result['targets'] == dict(student=label, teacher=label)
        prediction = result['predictions']['teacher']
        assert (
            prediction['label'] == label
            and prediction['class'] == ['ant', 'bee', 'cat', 'dog'][label]
        )
        assert prediction['score'] == pytest.approx(float(logits.softmax(0)[label]), rel=1e-4)
        student = result['predictions']['student']
        assert result['pred_class'] == student['class'] and result['pred_score'] == student['score']
        assert result['degenerate'] == dict(student=False, teacher=False)


def test_one_image_a_list_an_array_and_a_path_object_are_the_same(home, inferencer):
    path = home / 'images' / 'b.png'
    expected = inferencer(str(path))[0]['maps']['student']
    for given in (path, [str(path)], cv2.imread(str(path)), [cv2.imread(str(path))]):
        np.testing.assert_array_equal(inferencer(given)[0]['maps']['student'], expected)


def test_results_do_not_depend_on_the_batch(home, inferencer):
    paths = [str(home / 'images' / name) for name in ('a.jpg', 'b.png', 'more/a.png')]
    one, three = (inferencer(paths, batch_size=n) for n in (1, 3))
    for a, b in zip(one, three, strict=True):
        np.testing.assert_allclose(a['maps']['student'], b['maps']['student'], rtol=1e-5, atol=1e-8)


def test_the_class_can_be_chosen(home, inferencer):
    path = str(home / 'images' / 'a.jpg')
    assert inferencer(path, target=3)[0]['targets'] == dict(student=3, teacher=3)
    own = inferencer(path, target='own')[0]
    assert own['targets'] == {name: each['label'] for name, each in own['predictions'].items()}
    student = inferencer(path, target='student')[0]
    assert student['targets']['teacher'] == student['pred_label']


def test_a_function_of_the_logits_is_explained(home, inferencer, tmp_path):
    def third(logits):
        return logits[:, 3]

    path = str(home / 'images' / 'a.jpg')
    [found] = inferencer(path, target=third, show_dir=str(tmp_path))
    assert found['targets'] == dict(student='third', teacher='third')
    assert Path(found['picture']).is_file() and 'pred_label' in found
    [expected] = inferencer(path, target=3)
    for name, each in expected['maps'].items():
        np.testing.assert_allclose(found['maps'][name], each, rtol=1e-4, atol=1e-7)


def test_pictures_are_written_one_for_each_image(home, inferencer, tmp_path):
    results = inferencer(
        [home / 'images', home / 'images' / 'more'], show_dir=str(tmp_path / 'maps')
    )
    names = [Path(result['picture']).name for result in results]
    assert names == ['a.png', 'b.png', 'a_2.png']
    for result in results:
        picture = cv2.imread(result['picture'])
        assert picture.shape[1] > 3 * 224 and picture.std() > 10
    # The first picture is the image itself, in its own colours
    shown = cv2.imread(results[0]['picture'])[12:236, 12:236]
    image = cv2.imread(str(home / 'images' / 'a.jpg'))
    np.testing.assert_array_equal(shown[7::14, 7::14], image)


def test_an_unreadable_image_is_named_and_the_rest_goes_on(home, inferencer, tmp_path, caplog):
    folder = tmp_path / 'images'
    folder.mkdir()
    (folder / 'a_bad.jpg').write_text('no image')
    (folder / 'b_empty.png').touch()
    good = cv2.imread(str(home / 'images' / 'b.png'))
    cv2.imwrite(str(folder / 'c.png'), good)
    results = inferencer([folder, folder / 'd_missing.png'], show_dir=str(tmp_path / 'out'))
    errors = [result.get('error') for result in results]
    assert 'a_bad.jpg' in errors[0] and 'b_empty.png' in errors[1]
    assert errors[2] is None and results[2]['maps']['student'].shape == (8, 8)
    assert 'd_missing.png: there is no such file' in errors[3]
    assert [path.name for path in (tmp_path / 'out').iterdir()] == ['c.png']


@pytest.mark.filterwarnings('ignore::PIL.Image.DecompressionBombWarning')
def test_an_image_that_is_too_large_is_left_out(home, inferencer, tmp_path):
    (tmp_path / 'bomb.png').write_bytes(IMAGES['PNG of 12,000 x 12,000'](None))
    bad, good = inferencer([tmp_path / 'bomb.png', home / 'images' / 'b.png'])
    assert 'bomb.png: an image of 12,000 x 12,000 pixels is beyond the limit' in bad['error']
    assert 'error' not in good and good['maps']['student'].shape == (8, 8)


def test_a_plain_classifier_explains_its_own_prediction(home):
    inferencer = ExplainInferencer(
        str(home / 'student.py'), str(home / 'student.pth'), explainer=dict(type='LayerCAM')
    )
    (result,) = inferencer(str(home / 'images' / 'a.jpg'))
    assert set(result['maps']) == {'student'}
    assert result['targets'] == dict(student=result['pred_label'])


def test_a_teacher_can_be_added(home):
    student = Config.fromfile(home / 'student.py')
    teacher = dict(model=student.model.to_dict(), checkpoint=str(home / 'student.pth'))
    inferencer = ExplainInferencer(student, str(home / 'student.pth'), teacher=teacher)
    (result,) = inferencer(str(home / 'images' / 'a.jpg'))
    np.testing.assert_allclose(result['maps']['teacher'], result['maps']['student'], rtol=1e-5)


def test_names_of_the_model_zoo_and_model_objects(home):
    image = np.random.RandomState(0).randint(0, 255, (40, 60, 3), np.uint8)
    for model in ('mobilenet-v2_8xb32_in1k', get_model('mobilenet-v2_8xb32_in1k')):
        torch.manual_seed(0)
        inferencer = ExplainInferencer(model, pretrained=False)
        (result,) = inferencer(image)
        assert result['maps']['student'].shape == (7, 7)


def test_networks_of_other_libraries_by_name(home, tmp_path):
    """Explained with the library's normalisation, as a plain module is."""
    torch.manual_seed(0)
    network = torchvision.models.shufflenet_v2_x0_5(num_classes=4).eval()
    torch.save(network.state_dict(), tmp_path / 'net.pth')
    name, checkpoint = 'torchvision::shufflenet_v2_x0_5', str(tmp_path / 'net.pth')
    base = dict(model=dict(type=name, num_classes=4), checkpoint=checkpoint)
    named = ExplainInferencer(name, checkpoint, num_classes=4, base=base)
    [result] = named(str(home / 'images/b.png'), target=1)
    assert np.array_equal(result['maps']['student'], result['maps']['base'])
    image = cv2.imread(str(home / 'images/b.png'))
    side = round(224 / 0.875)
    large = cv2.resize(image, (round(side * 30 / 20), side), interpolation=cv2.INTER_LINEAR)
    top, left = round((large.shape[0] - 224) / 2), round((large.shape[1] - 224) / 2)
    middle = large[top : top + 224, left : left + 224, ::-1].copy()
    mean, std = np.array([0.485, 0.456, 0.406]) * 255, np.array([0.229, 0.224, 0.225]) * 255
    inputs = torch.from_numpy((middle - mean) / std).permute(2, 0, 1)[None].float()
    expected = GradCAM()(network, inputs, torch.tensor([1]))[0]
    np.testing.assert_allclose(result['maps']['student'], expected, rtol=1e-3, atol=1e-5)
    with pytest.raises(ValueError, match='model: .*torchvision has no such classifier; near names'):
        ExplainInferencer('torchvision::shufflenet_v2_x0_6')


@pytest.mark.parametrize(
    ('arguments', 'call', 'message'),
    [
        (dict(explainer='CAMM'), None, "ExplainInferencer.explainer: there is no explainer 'CAMM'"),
        (dict(teacher=2), None, 'ExplainInferencer.teacher is 2 and there are 1 teachers'),
        (
            {},
            dict(target='gt'),
            "target is 'gt'; it must be a class index, 'student', 'teacher', 'own' or a function",
        ),
        ({}, dict(target=4), 'target 4 is no class of the model, which has 4'),
        ({}, dict(inputs='empty'), 'there is no image in the folder'),
    ],
)
def test_mistakes_are_one_sentence(home, arguments, call, message, tmp_path):
    def run():
        inferencer = ExplainInferencer(
            str(home / 'distill.py'), str(home / 'student.pth'), **arguments
        )
        settings = dict(dict(inputs=str(home / 'images')), **(call or {}))
        if settings['inputs'] == 'empty':
            settings['inputs'] = str(tmp_path)
        inferencer(**settings)

    with pytest.raises(ValueError, match=message):
        run()


def test_a_model_object_without_its_config_is_refused():
    with pytest.raises(ValueError, match='model has no config, .* take it from mmpretrain'):
        ExplainInferencer(build(classifier()))


def config_of(model: dict, dataset: dict, **preprocessor) -> Config:
    """The config of a classifier."""
    size = preprocessor.pop('size', 16)
    steps = dataset.pop('pipeline', None) or [
        dict(type='LoadImageFromFile', **dataset.pop('loader', {})),
        dict(type='Resize', scale=(size, size)),
        dict(type='PackInputs'),
    ]
    return Config(
        dict(
            model=dict(model, data_preprocessor=dict(type='ClsDataPreprocessor', **preprocessor)),
            test_dataloader=dict(
                dataset=dict(dict(type='CustomDataset', pipeline=steps), **dataset)
            ),
        )
    )


# How images are loaded


@pytest.fixture
def red(tmp_path) -> str:
    image = np.zeros((32, 32, 3), np.uint8)
    image[..., 2] = 200
    cv2.imwrite(str(tmp_path / 'red.png'), image)
    return str(tmp_path / 'red.png')


def seen(inferencer: ExplainInferencer, image: str | np.ndarray) -> torch.Tensor:
    """What enters the backbone."""
    found = []
    handle = inferencer.model.backbone.register_forward_pre_hook(
        lambda module, args: found.append(args[0].detach().clone())
    )
    (result,) = inferencer(image)
    handle.remove()
    assert 'error' not in result, result['error']
    return found[0][0]


@pytest.mark.parametrize('as_array', [False, True])
def test_a_red_file_is_red_for_a_network_of_cifar(red, as_array, tmp_path):
    """Its data set holds RGB arrays, and a file is read in BGR."""
    inferencer = ExplainInferencer('configs/cifar/resnet20_cifar100.py', False)
    preprocessor = inferencer.model.data_preprocessor
    image = seen(inferencer, cv2.imread(red) if as_array else red)
    values = image * preprocessor.std.view(3, 1, 1) + preprocessor.mean.view(3, 1, 1)
    expected = torch.tensor([200.0, 0.0, 0.0]).view(3, 1, 1).expand_as(values)
    torch.testing.assert_close(values, expected, atol=1e-3, rtol=0)
    (result,) = inferencer(red, show_dir=str(tmp_path))
    assert cv2.imread(result['picture'])[100, 100].tolist() == [0, 0, 200], 'the picture is red'


@pytest.mark.parametrize('as_array', [False, True])
@pytest.mark.parametrize(
    'dataset',
    [
        dict(loader=dict(color_type='grayscale')),
        dict(type='MNIST', pipeline=[dict(type='PackInputs')]),
    ],
    ids=['loader', 'arrays'],
)
def test_networks_of_grey_images(red, dataset, as_array, tmp_path):
    backbone = dict(
        type='ResNet_CIFAR',
        depth=18,
        in_channels=1,
        base_channels=4,
        stem_channels=4,
        out_indices=(3,),
    )
    model = dict(classifier(32), backbone=backbone)
    config = config_of(model, dict(dataset), size=32, mean=[10.0], std=[2.0])
    inferencer = ExplainInferencer(config, False)
    image = seen(inferencer, cv2.imread(red) if as_array else red)
    # 0.299 of 200; OpenCV's reader rounds down
    in_file = 59 if 'loader' in dataset else 60
    value = 60 if as_array else in_file
    torch.testing.assert_close(image, torch.full((1, 32, 32), (value - 10) / 2))
    (result,) = inferencer(red, show_dir=str(tmp_path))
    assert cv2.imread(result['picture'])[100, 100].tolist() == [in_file] * 3


@pytest.mark.parametrize('wrapped', [False, True])
def test_the_loader_keeps_its_options(red, wrapped):
    loader = dict(type='LoadImageFromFile', to_float32=True, imdecode_backend='pillow')
    pipeline = [dict(type='Resize', scale=(16, 16)), loader, dict(type='PackInputs')][1:]
    dataset = dict(type='CustomDataset', pipeline=pipeline)
    dataset = dict(type='RepeatDataset', times=2, dataset=dataset) if wrapped else dataset
    config = config_of(classifier(4), dict(pipeline=pipeline))
    config.test_dataloader.dataset = dataset
    inferencer = ExplainInferencer(config, False)
    data = inferencer._load(red)['inputs']
    assert data.dtype == torch.float32 and data[:, 0, 0].tolist() == [0, 0, 200]


# What predictions mean


@pytest.mark.parametrize('classes', [1, 3])
def test_scores_of_sigmoid_heads(home, classes):
    """A network with one logit of -3 says 0.047, not 1."""
    head = dict(type='MultiLabelLinearClsHead', num_classes=classes, in_channels=4)
    inferencer = ExplainInferencer(config_of(dict(classifier(4), head=head), {}), False)
    fc = inferencer.model.head.fc
    fc.weight.data.fill_(1e-9)  # which moves the score, and hardly
    fc.bias.data.copy_(torch.tensor([-3.0, 1.0, 0.5][:classes]))
    (result,) = inferencer(str(home / 'images' / 'a.jpg'))
    label, score = (0, 0.047426) if classes == 1 else (1, 0.731059)
    assert result['pred_label'] == label and result['pred_score'] == pytest.approx(score, abs=1e-6)


# What classes and models are called


def test_classes_of_imagenet_have_their_names(home, tmp_path):
    model = classifier(4, classes=1000)
    inferencer = ExplainInferencer(config_of(model, dict(type='ImageNet')), False)
    fc = inferencer.model.head.fc
    fc.weight.data.fill_(1e-9)  # which moves the score, and hardly
    fc.bias.data.copy_(torch.arange(1000) == 560)
    (result,) = inferencer(str(home / 'images' / 'a.jpg'))
    assert (result['pred_label'], result['pred_class']) == (560, 'football helmet')


def test_names_come_from_the_config_where_the_checkpoint_has_none(home):
    dataset = dict(metainfo=dict(classes=['fox', 'owl', 'elk', 'bee']))
    inferencer = ExplainInferencer(config_of(classifier(4), dataset), False)
    assert inferencer.classes == ('fox', 'owl', 'elk', 'bee')
    inferencer = ExplainInferencer(config_of(classifier(4), dataset), str(home / 'student.pth'))
    assert inferencer.classes == ['ant', 'bee', 'cat', 'dog'], "the weights' own"


def test_a_plain_model_has_its_own_name(home, inferencer):
    plain = ExplainInferencer(Config.fromfile(home / 'student.py'), str(home / 'student.pth'))
    assert (plain.student, inferencer.student) == ('student', 'student')
    plain = ExplainInferencer('configs/cifar/resnet20_cifar100.py', False)
    assert plain.student == 'resnet20_cifar100'
    assert ExplainInferencer(config_of(classifier(4), {}), False).student == 'TinyBackbone'


# Memory


def test_memory_does_not_grow_with_the_images(home, tmp_path):
    """No more than a batch of prepared images, pictures or maps of pixels is alive at a time."""
    inferencer = ExplainInferencer(
        str(home / 'student.py'), str(home / 'student.pth'), explainer='InputGradient'
    )
    path = str(home / 'images' / 'a.jpg')
    peaks = {}
    for count in (4, 20, 4, 20):
        tracemalloc.start()
        for result in inferencer.stream([path] * count, batch_size=2, show_dir=str(tmp_path)):
            assert Path(result['picture']).is_file()
        peaks[count] = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    # An image's picture alone has 400 KB; 16 paths and names are little beside it
    assert peaks[20] < peaks[4] + 50_000


def test_files_of_one_name_have_pictures_of_their_own(home, inferencer, tmp_path):
    for folder, name in (('s1', 'x'), ('s1', 'x_2'), ('s2', 'x')):
        (tmp_path / folder).mkdir(exist_ok=True)
        shutil.copy(home / 'images' / 'b.png', tmp_path / folder / f'{name}.png')
    results = inferencer([tmp_path / 's1', tmp_path / 's2'], show_dir=str(tmp_path / 'out'))
    assert [Path(each['picture']).name for each in results] == ['x.png', 'x_2.png', 'x_3.png']


def test_pictures_differ_where_case_and_normal_form_do_not_count(home, inferencer, tmp_path):
    names = ['x', 'X', 'é', 'e\u0301', 'É']
    for name in names:
        shutil.copy(home / 'images' / 'b.png', tmp_path / f'{name}.png')
    results = inferencer([tmp_path / f'{n}.png' for n in names], show_dir=tmp_path / 'out')
    stems = [Path(each['picture']).stem for each in results]
    assert stems == ['x', 'X_1', 'é', 'e\u0301_3', 'É_4']


def test_no_image_is_replaced_by_a_picture(home, inferencer, tmp_path):
    """A picture may lie beside the images, also by another path."""
    folder = tmp_path / 'images'
    shutil.copytree(home / 'images', folder)
    (tmp_path / 'link').symlink_to(folder)
    before = {path: path.read_bytes() for path in folder.glob('*.*')}
    first, second = (inferencer(folder, show_dir=tmp_path / 'link') for _ in range(2))
    assert [Path(each['picture']).name for each in first] == ['a_0.png', 'b_1.png']
    assert {path: path.read_bytes() for path in before} == before
    # Now 'a_0.png' is an image of the folder, too
    assert [Path(each['picture']).name for each in second] == [
        'a_1.png', 'a_0_1.png', 'b_2.png', 'b_1_3.png',
    ]  # fmt: skip


def test_a_second_call_replaces_its_own_pictures(home, inferencer, tmp_path):
    for _ in range(2):
        inferencer(home / 'images', show_dir=tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ['a.png', 'b.png']


@pytest.mark.parametrize(
    'name',
    [
        b'\xff\xfe',
        b'one\ntwo',
        b'a\tb',
        b'"\'',
        b'-x',
        b'a' * 251,
        '猫'.encode() * 83,
        b'%s#<b>.',
        b'.',
    ],
)
def test_strange_names(home, inferencer, tmp_path, name):
    image = tmp_path / os.fsdecode(name + b'.png')
    shutil.copy(home / 'images' / 'b.png', image)
    (result,) = inferencer(image, show_dir=tmp_path / 'out' / os.fsdecode(name[:100]))
    picture = cv2.imdecode(np.frombuffer(Path(result['picture']).read_bytes(), np.uint8), 1)
    assert picture.shape[1] > 3 * 224
    assert Path(result['picture']).stem == image.stem[: 66 if '猫' in image.stem else 200]


@pytest.mark.parametrize('name', ['a' * 300, 'a\0b', 'a\ud800b'])
def test_names_that_no_file_can_have(inferencer, name, tmp_path):
    (result,) = inferencer(name, show_dir=tmp_path)
    shown = name.replace('\0', r'\x00').replace('\ud800', r'\ud800')
    assert result['error'] == f'cannot read image {shown}: there is no such file'


def test_pictures_that_cannot_be_written(home, inferencer, tmp_path):
    (tmp_path / 'file').touch()
    with pytest.raises(WriteError, match=f'cannot make the folder {tmp_path}/file: File exists'):
        inferencer(home / 'images', show_dir=tmp_path / 'file')
    (tmp_path / 'out' / 'b.png').mkdir(parents=True)
    with pytest.raises(WriteError, match=f'cannot write {tmp_path}/out/b.png: Is a directory'):
        inferencer(home / 'images', show_dir=tmp_path / 'out')


def test_the_command_line_tool(home, tmp_path, monkeypatch, capsys):
    bad = tmp_path / 'bad.png'
    bad.write_text('no image')
    arguments = [
        home / 'distill.py', home / 'student.pth', home / 'images', bad,
        '--explainer', 'GradCAM', '--explainer-options', 'layer=backbone.stem',
        '--target', '1', '--out', tmp_path / 'out', '--batch-size', '2',
    ]  # fmt: skip
    monkeypatch.setattr(sys, 'argv', ['explain.py', *map(str, arguments)])
    tool('explain').main()
    output = capsys.readouterr().out
    assert '1 of 3 images could not be read' in output
    assert str(tmp_path / 'out' / 'a.png') in output and 'left out' in output
    assert re.search(r'\| (ant \(0\)|bee \(1\)|cat \(2\)|dog \(3\)) 0\.\d{3} ', output)
    assert sorted(path.name for path in (tmp_path / 'out').iterdir()) == ['a.png', 'b.png']


@pytest.mark.parametrize(
    ('images', 'options', 'words'),
    [
        ('bad', [], 'no image could be explained'),
        ('images', ['--target', '²'], "target is '²'; it must be a class index"),
        ('images', ['--out', '/dev/full/x'], 'cannot make the folder /dev/full/x: Not a directory'),
    ],
)
def test_the_tool_fails_with_a_sentence(
    home, images, options, words, monkeypatch, capsys, tmp_path
):
    (home / 'bad').mkdir(exist_ok=True)
    (home / 'bad' / 'one\ntwo.png').write_text('no image')
    arguments = [home / 'student.py', home / 'student.pth', home / images, '--out', tmp_path]
    monkeypatch.setattr(sys, 'argv', ['explain.py', *map(str, [*arguments, *options])])
    with pytest.raises(SystemExit, match=re.escape(words)):
        tool('explain').main()
    output = capsys.readouterr().out
    assert (r'| one\ntwo.png | left out ' in output) == (images == 'bad')
    assert ('1 of 1 images could not be read' in output) == (images == 'bad')


def test_a_full_disk_is_a_sentence(home, tmp_path, monkeypatch):
    """A limit of the size of files fails as a full disk does, in the middle of a picture."""
    arguments = [home / 'student.py', home / 'student.pth', home / 'images', '--out', tmp_path]
    monkeypatch.setattr(sys, 'argv', ['explain.py', *map(str, arguments)])
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, before[1]))
    try:
        with pytest.raises(SystemExit, match=f'^cannot write {tmp_path}/a.png: File too large$'):
            tool('explain').main()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not [*tmp_path.iterdir()]
