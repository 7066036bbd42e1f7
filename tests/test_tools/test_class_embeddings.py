"""The vectors of classes are means of what the network yields for training images."""

import sys

import numpy as np
import pytest
import torch
from full_disk import full_disk
from mmengine.config import Config
from tiny import build, classifier, tool

from mmkdx.explain import UniCAM

PREPROCESSOR = dict(num_classes=10, mean=[78.0] * 3, std=[84.0] * 3)


def loader(**settings):
    return dict(
        batch_size=20,
        num_workers=0,
        dataset=dict(type='Digits', indices=60, pipeline=[dict(type='PackInputs')], **settings),
        sampler=dict(type='DefaultSampler', shuffle=True),
    )


def test_vectors_of_digits(tmp_path, monkeypatch, capsys):
    config = Config(
        dict(
            default_scope='mmkdx',
            custom_imports=dict(imports=['mmkdx', 'tiny']),
            model=classifier(6, classes=10),
            data_preprocessor=PREPROCESSOR,
            train_dataloader=loader(),
            val_dataloader=loader(split='test'),
        )
    )
    config.dump(tmp_path / 'digits.py')
    torch.manual_seed(0)
    model = build(dict(config.model.to_dict(), data_preprocessor=PREPROCESSOR)).eval()
    torch.save(dict(state_dict=model.state_dict()), tmp_path / 'digits.pth')
    out = tmp_path / 'vectors.npy'
    arguments = [tmp_path / 'digits.py', tmp_path / 'digits.pth', out]
    monkeypatch.setattr(sys, 'argv', ['class_embeddings.py', *map(str, arguments)])
    tool('analysis_tools/class_embeddings').main()
    assert '10 classes, 6 numbers each, of 60 images' in capsys.readouterr().out
    from mmkdx.datasets import Digits

    data = Digits(indices=60)
    sums = np.zeros((10, 6))
    for i in range(60):
        image = torch.from_numpy(data[i]['img']).permute(2, 0, 1)[None].float()
        with torch.no_grad():
            vector = model.backbone((image - 78) / 84)[0].mean((2, 3))[0].double().numpy()
        sums[data[i]['gt_label']] += vector / np.linalg.norm(vector)
    expected = sums / np.linalg.norm(sums, axis=1, keepdims=True)
    np.testing.assert_allclose(np.load(out), expected, atol=1e-5)
    before = out.read_bytes()
    module = tool('analysis_tools/class_embeddings')
    module.write_file = full_disk(200)(module.write_file)
    with pytest.raises(SystemExit, match=f'^cannot write {out}: File too large$'):
        module.main()
    assert out.read_bytes() == before
    assert UniCAM(embedding=str(out)).label_features(torch.tensor([3])).shape == (1, 6)


def test_another_ending_is_refused(monkeypatch):
    monkeypatch.setattr(sys, 'argv', ['class_embeddings.py', 'c.py', 'k.pth', 'out.txt'])
    with pytest.raises(SystemExit, match='out.txt does not end in .npy'):
        tool('analysis_tools/class_embeddings').main()
