"""Makes the pictures of the gallery: a network of ImageNet on photographs of scikit-image.

python tests/efficientnet_lite0.py lite0.pth
python docs/en/make_gallery.py lite0.pth
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Mapping, Sequence
from pathlib import Path

import cv2
import numpy as np
import torch
from mmpretrain.datasets.categories import IMAGENET_CATEGORIES
from PIL import Image
from skimage import data
from torch import Tensor, nn
from torch.nn.utils import prune
from torch.utils.data import DataLoader

from mmkdx.apis import evaluate_explanations
from mmkdx.explain import build_explainer
from mmkdx.models import describe
from mmkdx.models.libraries import find_network
from mmkdx.visualization.rendering import colorize, difference, joined, overlay, put_text

FOLDER = Path(__file__).parent / '_static' / 'gallery'

#: The photographs of scikit-image, with author and licence as its documentation has them.
PHOTOS = dict(
    chelsea='Stefan van der Walt, CC0',
    coffee='Rachel Michetti, CC0',
    camera='Lav Varshney, CC0',
    astronaut='NASA, public domain',
    rocket='SpaceX, public domain',
)

#: Classes to explain beside each other. The helmet is an astronaut's, which ImageNet lacks.
CLASSES = dict(
    camera=('tripod', 'reflex camera', 'suit'),
    astronaut=('football helmet', 'space shuttle', 'flagpole'),
)

#: The explainers of networks without attention, and a note under the name of each.
EXPLAINERS = {
    'CAM': 'weights of the classifier',
    'GradCAM': 'here the same as CAM',
    'HiResCAM': 'here the same as CAM',
    'XGradCAM': 'here the same as CAM',
    'GradCAMPlusPlus': 'weighted gradients',
    'LayerCAM': 'positive gradients',
    'AblationCAM': 'drop without a channel',
    'ScoreCAM': 'images masked by channels',
    'EigenCAM': 'knows no class',
    'EigenGradCAM': 'main component',
    'FullGrad': 'gradients of all layers',
    'InputGradient': 'gradient of the pixels',
    'IntegratedGradients': 'from grey to photograph',
    'SmoothGrad': 'mean over noisy copies',
    'RandomMap': 'noise: the floor',
}

#: Fewer passes through the network than by default; ScoreCAM would take one for each of 1,280 channels.
OPTIONS = dict(
    ScoreCAM=dict(channels=128),
    IntegratedGradients=dict(steps=20),
    SmoothGrad=dict(samples=25),
)

#: The height and width of a map, of its text and of the line around both, in pixels.
SIDE, BAND, GAP = 400, 84, 4


def photograph(name: str) -> np.ndarray:
    """The square in the middle of a photograph, RGB, with 87.5 % of its shorter side."""
    image = getattr(data, name)()
    image = np.broadcast_to(image[..., None], (*image.shape, 3)) if image.ndim == 2 else image
    side = round(0.875 * min(image.shape[:2]))
    top, left = ((size - side) // 2 for size in image.shape[:2])
    return np.ascontiguousarray(image[top : top + side, left : left + side])


def resized(image: np.ndarray, side: int) -> np.ndarray:
    """A square image of another size."""
    way = cv2.INTER_AREA if side < len(image) else cv2.INTER_CUBIC
    return cv2.resize(image, (side, side), interpolation=way)


def prepared(model: nn.Module, names: Sequence[str]) -> Tensor:
    """Photographs as a model takes them, (N, 3, H, W)."""
    expected = describe(model).images
    mean, std = (torch.tensor(each)[:, None, None] for each in (expected.mean, expected.std))
    images = [resized(photograph(name), expected.size[0]) for name in names]
    return torch.stack([(torch.tensor(image).permute(2, 0, 1) - mean) / std for image in images])


def probabilities(model: nn.Module, inputs: Tensor) -> Tensor:
    """The probabilities of all classes, (N, K)."""
    facts = describe(model)
    with torch.no_grad():
        return facts.probabilities(facts.logits(inputs))


def class_text(label: int, chances: Tensor) -> str:
    """A class's first name and its probability."""
    percent = 100 * float(chances[label])
    digits = '.0f' if percent >= 1 else '.1g'
    return f'{IMAGENET_CATEGORIES[label].partition(",")[0]} {percent:{digits}} %'


def cell(picture: np.ndarray, head: str, line: str = '') -> np.ndarray:
    """A picture over a dark band with two lines of text, which reads on light and dark pages."""
    band = np.full((BAND, SIDE, 3), (27, 31, 36), np.uint8)
    put_text(band, head, 12, 35, 29, SIDE - 24, (255, 255, 255))
    put_text(band, line, 12, 68, 24, SIDE - 24, (176, 184, 193))
    edged = joined([resized(picture, SIDE), band])
    return np.pad(edged, ((0, GAP), (0, GAP), (0, 0)), constant_values=128)


def sheet(cells: Sequence[np.ndarray], columns: int = 4) -> np.ndarray:
    """Cells in rows, with grey lines between them."""
    rows = [joined(cells[i : i + columns], 1) for i in range(0, len(cells), columns)]
    return joined(rows)[:-GAP, :-GAP]


def over(image: np.ndarray, values: Tensor) -> np.ndarray:
    """A raw map (h, w) over a photograph, at the size of a cell."""
    return overlay(torch.from_numpy(resized(image, SIDE))[None], values[None])[0].numpy()


def explainers_sheet(model: nn.Module, name: str, explainers: Mapping[str, str]) -> np.ndarray:
    """A photograph and the maps of the predicted class by explainers, which have a note each."""
    image, inputs = photograph(name), prepared(model, [name])
    chances = probabilities(model, inputs)[0]
    cells = [cell(image, class_text(int(chances.argmax()), chances), PHOTOS[name])]
    for explainer, note in explainers.items():
        built = build_explainer(dict(type=explainer, **OPTIONS.get(explainer, {})))
        values = built(model, inputs, 'pred')
        cells.append(cell(over(image, values[0]), explainer, note))
    return sheet(cells)


def classes_sheet(model: nn.Module, classes: Mapping[str, Sequence[str]]) -> np.ndarray:
    """A row for each photograph, with the maps of some classes."""
    names = [each.partition(',')[0] for each in IMAGENET_CATEGORIES]
    cells = []
    for name, asked in classes.items():
        image, inputs = photograph(name), prepared(model, [name])
        chances = probabilities(model, inputs)[0]
        cells.append(cell(image, 'photograph', PHOTOS[name]))
        for label in map(names.index, asked):
            values = build_explainer('CAM')(model, inputs, label)
            place = int((chances > chances[label]).sum()) + 1
            cells.append(cell(over(image, values[0]), class_text(label, chances), f'rank {place}'))
    return sheet(cells)


def pruned(model: nn.Module, amount: float) -> nn.Module:
    """A copy of a model without the smallest of its weights, and without training after that."""
    model = copy.deepcopy(model)
    layers = [each for each in model.modules() if isinstance(each, (nn.Conv2d, nn.Linear))]
    weights = [(layer, 'weight') for layer in layers]
    prune.global_unstructured(weights, prune.L1Unstructured, amount=amount)
    for layer in layers:
        prune.remove(layer, 'weight')
    return model


def rounded(model: nn.Module, bits: int) -> nn.Module:
    """A copy of a model, its weights rounded to integers of some bits times a scale per channel."""
    model = copy.deepcopy(model)
    for layer in model.modules():
        if isinstance(layer, (nn.Conv2d, nn.Linear)):
            weight = layer.weight.data.flatten(1)
            scale = weight.abs().amax(1, keepdim=True).clamp(min=1e-12) / (2 ** (bits - 1) - 1)
            layer.weight.data = ((weight / scale).round() * scale).view_as(layer.weight)
    return model


def agreement(model: nn.Module, other: nn.Module, names: Sequence[str]):
    """``MapAgreement`` of a compressed model's maps with the model's own, an ``Evaluation``."""
    inputs = prepared(model, names)
    pairs = list(zip(inputs, probabilities(model, inputs).argmax(1).tolist()))
    return evaluate_explanations(
        other, DataLoader(pairs, 1), model, explainer='CAM', metrics=['MapAgreement'], telling=False
    )


def models_sheet(
    model: nn.Module, other: nn.Module, what: str, names: Sequence[str], rows: Mapping
) -> np.ndarray:
    """A row for each photograph: both models' maps of the class that the first predicts."""
    cells = []
    for name in names:
        image, inputs = photograph(name), prepared(model, [name])
        chances = [probabilities(each, inputs)[0] for each in (model, other)]
        label = int(chances[0].argmax())
        maps = [build_explainer('CAM')(each, inputs, label) for each in (model, other)]
        gap = colorize(difference(maps[1], maps[0], (SIDE, SIDE)), 'diverging')[0].numpy()
        cells.append(cell(image, 'photograph', PHOTOS[name]))
        for head, values, each in zip(('EfficientNet-Lite0', what), maps, chances):
            cells.append(cell(over(image, values[0]), head, class_text(int(each.argmax()), each)))
        cells.append(cell(gap, 'difference', f'correlation {rows[name]["pearson"]:.2f}'))
    return sheet(cells)


def write(path: Path, picture: np.ndarray) -> None:
    """Writes a picture, with two dots for each pixel of a page."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture).save(path, quality=82, optimize=True)
    print(path)


def main() -> None:
    parser = argparse.ArgumentParser(description='Makes the pictures of the gallery.')
    parser.add_argument('weights', help='what tests/efficientnet_lite0.py wrote')
    parser.add_argument('--out', type=Path, default=FOLDER, help='the folder of the pictures')
    args = parser.parse_args()
    model = find_network('timm::tf_efficientnet_lite0', 'model')()
    model.load_state_dict(torch.load(args.weights, weights_only=True))
    model.eval()
    for what, other in {'8 bits': rounded(model, 8), '40 % zero': pruned(model, 0.4)}.items():
        found = agreement(model, other, list(PHOTOS))
        print(f'{what}\n{found}')
        rows = {name: found.rows[i] for i, name in enumerate(PHOTOS)}
    for name, chosen in dict(hero=('coffee', 'chelsea'), pruned=('camera', 'rocket')).items():
        picture = models_sheet(model, other, '40 % of weights zero', chosen, rows)
        write(args.out / f'{name}.jpg', picture)
    write(args.out / 'classes.jpg', classes_sheet(model, CLASSES))
    for name in ('chelsea', 'coffee', 'camera', 'astronaut'):
        write(args.out / f'{name}.jpg', explainers_sheet(model, name, EXPLAINERS))


if __name__ == '__main__':
    main()
