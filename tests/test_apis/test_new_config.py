"""Configs from a folder and two names: written, read from any folder, and built."""

from pathlib import Path

import numpy as np
import pytest
import torch
from drawn_images import CLASSES, write_folder
from mmengine.config import Config
from mmengine.registry import DefaultScope
from PIL import Image
from processes import is_formatted

from mmkdx.apis.config_keys import check_keys
from mmkdx.apis.dry_run import build_from_config, build_rest, one_step, synthetic_batch
from mmkdx.apis.methods import methods
from mmkdx.apis.new_config import new_config
from mmkdx.registry import DATASETS

timm = pytest.importorskip('timm')
TEACHER, STUDENT = 'timm::test_resnet', 'timm::test_efficientnet'


@pytest.fixture(scope='module')
def images(tmp_path_factory):
    """A folder of drawn images, with one file that cannot be read, and a name that is hard to quote."""
    folder = write_folder(tmp_path_factory.mktemp("it's data"), train=4, val=1, side=48)
    (folder / 'train/circle/torn.png').write_bytes(b'x')
    return folder


@pytest.fixture
def weights(tmp_path):
    """A file with weights of the teacher."""

    def write(classes=1000, names=None):
        torch.manual_seed(0)
        state = timm.create_model('test_resnet', num_classes=classes).state_dict()
        meta = dict(dataset_meta=dict(classes=names)) if names else {}
        torch.save(dict(state_dict=state, meta=meta), tmp_path / 'teacher.pth')
        return tmp_path / 'teacher.pth'

    return write


def make(images, out, **options):
    return new_config(images, TEACHER, STUDENT, out, **{'epochs': 10, **options})


def load(path, monkeypatch, folder):
    """A config as another folder reads it, and its model."""
    monkeypatch.chdir(folder)
    cfg = Config.fromfile(path)
    check_keys(cfg)
    model = build_from_config(cfg)
    build_rest(cfg, model)
    return cfg, model


def test_a_teacher_of_other_classes_is_trained_first(images, weights, tmp_path, monkeypatch):
    file = weights()
    monkeypatch.chdir(tmp_path)
    made = make(images, 'out', checkpoint='teacher.pth', method='cat-kd')
    out = tmp_path / 'out'
    assert made.configs == [out / 'teacher.py', out / 'student.py'] and is_formatted(*made.configs)
    assert made.checkpoints == [out / 'teacher/epoch_2.pth', out / 'student/epoch_10.pth']
    assert made.sentences[0] == (
        '6 classes, 24 images to train on and 6 to validate on, of 48 x 48 pixels (height x width).'
    )
    assert '1 in all: train/circle/torn.png (no image)' in made.sentences[1]
    assert "1,000 classes do not map to the data's: 6 of the 6 are not among" in made.sentences[2]
    assert made.sentences[3:] == [
        'So teacher.py trains the teacher on the data for 2 epochs first.'
    ]
    assert (out / 'rejected.txt').read_text() == 'train/circle/torn.png\tno image\n'
    student = f'{out}/student.py {out}/student/epoch_10.pth'
    assert [' '.join(each) for each in made.commands()] == [
        *(f'train.py {out}/{name}.py' for name in ('teacher', 'student')),
        f'test.py {student} --report',
        f'model_converters/export_student.py {student} {out}/export --format library',
    ]

    cfg, teacher = load(made.configs[0], monkeypatch, '/')
    assert type(teacher.model).__module__.startswith('timm') and teacher.known.num_classes == 6
    # The new classifier starts anew, all else from the file
    teacher.init_weights()
    given = torch.load(file, weights_only=True)['state_dict']
    for key, value in teacher.state_dict().items():
        assert torch.equal(value, given[key]) != key.startswith('fc.'), key
    assert cfg.train_cfg.max_epochs == 2 and cfg.work_dir == str(out / 'teacher')
    lr = cfg.optim_wrapper.optimizer.lr

    cfg, model = load(made.configs[1], monkeypatch, '/')
    assert cfg.optim_wrapper.optimizer.lr == pytest.approx(10 * lr, rel=0.1)
    assert cfg.train_cfg.max_epochs == 10 and cfg.work_dir == str(out / 'student')
    assert model.teachers[0].checkpoint == str(out / 'teacher/epoch_2.pth')
    assert type(model.teachers[0].model.model) is type(teacher.model)
    model.teachers[0].keep_random_weights(CLASSES)
    losses, unused = one_step(model, synthetic_batch(cfg))
    assert losses['loss_cat'] > 0 and not unused
    assert cfg.custom_hooks[1].explainer.type == 'CAM'

    # Each network gets images in its own normalisation
    own = [each.data_preprocessor.mean[:, 0, 0].tolist() for each in (model, teacher)]
    assert own == [pytest.approx([123.675, 116.28, 103.53]), [127.5] * 3]
    assert model.teachers[0].bridge.flip is False and model.teachers[0].bridge.scale.numel() == 3
    with DefaultScope.overwrite_default_scope('mmkdx'):
        data = {
            part: DATASETS.build(cfg[f'{part}_dataloader'].dataset) for part in ('train', 'val')
        }
    assert len(data['train']) == 24 and len(data['val']) == 6
    assert data['val'].metainfo['classes'] == CLASSES
    assert [int(data['val'][i]['data_samples'].gt_label) for i in range(6)] == [*range(6)]
    assert all(part[0]['inputs'].shape == (3, 128, 128) for part in data.values())


@pytest.mark.parametrize('names', [None, ('dog', *CLASSES[::-1])])
def test_a_teacher_of_the_data_s_classes_teaches_at_once(
    images, weights, tmp_path, monkeypatch, names
):
    file = weights(len(names or CLASSES), names)
    made = make(images, tmp_path / 'out', checkpoint=file)
    assert made.configs == [tmp_path / 'out/student.py'] and is_formatted(*made.configs)
    cfg, model = load(made.configs[0], monkeypatch, '/')
    model.teachers[0].match_classes(CLASSES)
    network = dict(type=TEACHER, num_classes=len(names or CLASSES))
    expected = dict(model=network, checkpoint=str(file))
    assert cfg.model.teacher == expected | (dict(classes='match') if names else {})
    state = torch.load(file, weights_only=True)['state_dict']
    rows = state['fc.weight'].flip(0)[:6] if names else state['fc.weight']
    assert torch.equal(model.teachers[0].model.state_dict()['fc.weight'], rows)


def test_imagenet_s_classes_are_mapped_by_name(tmp_path, monkeypatch, weights):
    for name in ('n02123045', 'Egyptian_cat'):
        for i in range(5):
            path = tmp_path / 'data' / name / f'{i}.png'
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.full((40, 300, 3), 50 * i, np.uint8)).save(path)
    made = make(tmp_path / 'data', tmp_path / 'out', checkpoint=weights(), method='dist')
    cfg, model = load(made.configs[0], monkeypatch, '/')
    assert cfg.model.teacher['model'] == TEACHER
    assert cfg.model.teacher['classes'] == dict(n02123045=281, Egyptian_cat=285)
    # A split of five images each, of which one is held out
    assert len((tmp_path / 'out/val.txt').read_text().splitlines()) == 2


def test_without_a_checkpoint_the_library_s_weights_are_downloaded(images, tmp_path):
    made = make(images, tmp_path / 'out')
    assert Config.fromfile(made.configs[0]).model.pretrained
    assert 'pretrained' not in made.configs[1].read_text()


def test_a_callable_needs_no_checkpoint(images, tmp_path, monkeypatch):
    def build():
        return timm.create_model('test_vit', num_classes=6, dynamic_img_size=False)

    monkeypatch.setattr('networks.build', build, raising=False)
    made = new_config(images, 'networks:build', STUDENT, tmp_path / 'out', epochs=1)
    cfg, model = load(made.configs[0], monkeypatch, '/')
    assert cfg.model.teacher == dict(model='networks:build')
    # The network takes one size; its class token has no class maps
    assert cfg.model.input_size == 160 and cfg.custom_hooks[1].explainer.type == 'GradCAM'
    assert made.export_format == 'library'


def test_networks_of_mmpretrain_s_zoo(images, tmp_path, monkeypatch):
    name = 'resnet18_8xb32_in1k'
    made = new_config(images, name, name, tmp_path / 'out', epochs=1)
    assert made.export_format == 'mmpretrain' and is_formatted(*made.configs)
    # The teacher starts with its published weights
    cfg = Config.fromfile(made.configs[0])
    assert cfg.model.head.num_classes == 6 and cfg.model.type == 'ImageClassifier'
    assert cfg.model.init_cfg.checkpoint.startswith('https://')
    assert cfg.data_preprocessor.to_rgb and cfg.data_preprocessor.mean[0] == 123.675
    cfg, model = load(made.configs[1], monkeypatch, '/')
    assert model.student.head.num_classes == 6 and model.teachers[0].model.head.num_classes == 6


def test_what_somebody_may_have_changed_stays(images, weights, tmp_path):
    out, file = tmp_path / 'out', weights(6)
    made = make(images, out, checkpoint=file)
    assert make(images, out, checkpoint=file).configs == made.configs
    text = made.configs[0].read_text()
    with pytest.raises(ValueError) as error:
        make(images, out, checkpoint=file, epochs=11)
    assert str(error.value) == (
        f'--out: {out}/student.py is there with other content; choose another folder, or remove the file'
    )
    assert made.configs[0].read_text() == text


def test_the_guide_lists_the_methods():
    guide = (Path(__file__).parents[2] / 'docs/en/user_guides/your_own.md').read_text()
    for name, method in methods(224, 64, 1, 100).items():
        row = next(line for line in guide.splitlines() if line.startswith(f'| `{name}` |'))
        assert method.title in row
        for term in method.terms.values():
            assert f'`{term["type"]}` at `{term["at"]}`, weight ' in row
            assert name == 'pkt' or f'weight {term["weight"]:g}' in row


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (dict(epochs=0), '--epochs is 0; it must be an integer of at least 1'),
        (dict(seed=-1), '--seed is -1; it must be an integer of at least 0'),
        (dict(method='cat'), '--method is .cat.; it must be one of kd, dkd, .*cat-kd'),
        (dict(checkpoint='nowhere.pth'), '--checkpoint: there is no file .*nowhere.pth'),
        (dict(student='timm::nothing_at_all'), '--student: .* timm has no such model'),
        (dict(data='/nowhere'), '--data: there is no folder or CSV /nowhere'),
    ],
)
def test_bad_options(images, tmp_path, options, message):
    given = dict(data=images, teacher=TEACHER, student=STUDENT, out=tmp_path / 'out')
    with pytest.raises((ValueError, FileNotFoundError), match=f'^{message}'):
        new_config(**{**given, **options})
    assert not (tmp_path / 'out').exists()


def test_a_method_that_the_networks_cannot_do(images, weights, tmp_path):
    with pytest.raises(
        ValueError, match='^--method at: terms.at.at: the student has no global average'
    ):
        new_config(images, TEACHER, 'timm::test_vit', tmp_path / 'out', weights(6), method='at')
    assert not (tmp_path / 'out').exists()


def test_runs_do_not_become_data(images):
    with pytest.raises(ValueError) as error:
        make(images, images / 'out')
    assert str(error.value) == (
        f'--out {images}/out is inside of --data {images}; choose a folder elsewhere'
    )


def test_a_teacher_without_weights(images, tmp_path):
    path = tmp_path / 'own.py'
    path.write_text("model = dict(type='PlainClassifier', network='timm::test_resnet')\n")
    with pytest.raises(ValueError) as error:
        new_config(images, str(path), STUDENT, tmp_path / 'out')
    assert str(error.value) == f'--teacher {path} comes without weights; pass --checkpoint FILE'
