"""Draws the birds of ``Parts``."""

from __future__ import annotations

import cmath
import math

import cv2
import numpy as np

#: The regions of a label map, by id. Parts are painted in this order, later ones over earlier ones.
REGIONS = ('background', 'tail', 'legs', 'body', 'crest', 'beak', 'head', 'wing', 'mark')
MARK = REGIONS.index('mark')

#: A class is a crest together with a variant of the part that this crest points to.
POINTS_TO = {'spiked': 'tail', 'bobbled': 'wing', 'plumed': 'beak'}


def _polygon(*points: float) -> np.ndarray:
    """Points of a polygon, from a flat list x, y, x, y, ..., as complex numbers x + iy."""
    return np.array(points[::2]) + 1j * np.array(points[1::2])


def _ellipse(x: float, y: float, a: float, b: float, n: int = 16) -> np.ndarray:
    """Points of a polygon around an ellipse with axes along x and y, as complex numbers."""
    angle = np.arange(n) * (2 * math.pi / n)
    return x + 1j * y + a * np.cos(angle) + 1j * b * np.sin(angle)


# Lengths are pixels of a 64 x 64 image. A part lies along +x of its own frame, with its joint at the
# origin; y points down.
VARIANTS = {
    'tail': {
        'fanned': [
            _polygon(-2, -2, 11, -10, 15, -5, 16, 0, 15, 5, 11, 10, -2, 2),
            _polygon(7, -6, 10, -8, 12, 0, 10, 8, 7, 6, 8, 0),
        ],
        'forked': [_polygon(-2, -2, 5, -3, 19, -11, 9, 0, 19, 11, 5, 3, -2, 2)],
        'long': [_polygon(-2, -2, 18, -1.5, 18, 1.5, -2, 2), _ellipse(19, 0, 4.5, 4.5)],
    },
    'wing': {
        'plain': [_ellipse(9, 0, 12, 7.5)],
        'barred': [
            _ellipse(9, 0, 12, 7.5),
            _polygon(3, -6, 6, -7, 6, 7, 3, 6),
            _polygon(9, -7, 12, -7, 12, 7, 9, 7),
            _polygon(15, -6, 18, -4, 18, 4, 15, 6),
        ],
        'spotted': [_ellipse(9, 0, 12, 7.5), _ellipse(10, 0, 5.5, 5.5)],
    },
    'beak': {
        'hooked': [_polygon(-2, -6, 6, -7, 12, -3, 14, 9, 8, 4, -2, 5)],
        'banded': [
            _polygon(-2, -3.5, 18, -1, 18, 1, -2, 3.5),
            _polygon(4, -2.5, 7, -2, 7, 2, 4, 2.5),
            _polygon(11, -2, 14, -1.5, 14, 1.5, 11, 2),
        ],
        'spooned': [_polygon(-2, -3, 12, -1, 12, 1, -2, 3), _ellipse(13, 0, 5, 5)],
    },
    'crest': {
        'spiked': [_polygon(-1, -6, 13, -10, 4, -3, 15, 0, 4, 3, 13, 10, -1, 6)],
        'bobbled': [_polygon(-2, -1, 8, -1, 8, 1, -2, 1), _ellipse(11, 0, 5, 5)],
        'plumed': [_polygon(-2, 1, 4, 2, 9, -1, 11, -8, 11, -15, 6, -8, 2, -4, -2, -4)],
    },
    'legs': {
        'straight': [
            _polygon(-3, -4, 10, -4, 10, -2, -3, -2),
            _polygon(-3, 2, 10, 2, 10, 4, -3, 4),
        ],
        'bent': [
            _polygon(-3, -4, 5, -6, 10, -2, 9, -1, 5, -4, -3, -2),
            _polygon(-3, 2, 5, 1, 10, 5, 9, 6, 5, 3, -3, 4),
        ],
        'webbed': [
            _polygon(-3, -4, 6, -4, 10, -8, 10, -1, 6, -2, -3, -2),
            _polygon(-3, 2, 6, 2, 10, -1, 10, 6, 6, 4, -3, 4),
        ],
    },
}
#: Parts whose first polygon has the part's colour; further ones, an eye or a pattern, are white.
LIGHT = ('head', 'tail', 'wing', 'beak')
#: The joint of a part with the bird, which looks to the right: x, y, and direction in degrees.
JOINTS = {
    'tail': (-12, 2, 172),
    'legs': (1, 7, 90),
    'crest': (13, -14, -100),
    'beak': (18, -10, 4),
    'wing': (1, -3, -138),
}

BODY = _ellipse(0, 0, 15, 8.5) * cmath.exp(-0.25j)
HEAD = _ellipse(13, -9, 6.5, 6.5)
EYE = _ellipse(15, -10, 2.2, 2.2)

# All within a circle of radius 1
DISTRACTORS = (
    _ellipse(0, 0, 1, 1),
    _ellipse(0, 0, 1, 0.5),
    _polygon(-1, -0.8, 1, 0, -1, 0.8),
    _polygon(-1, -0.3, 1, -0.3, 1, 0.3, -1, 0.3),
    np.stack([_ellipse(0, 0, 1, 1, 5), 0.45 * _ellipse(0, 0, 1, 1, 10)[1::2]], 1).ravel(),
)

# Colours are drawn from these ranges of hue (of 180), saturation and value. Six are for the
# background, twelve for distractors, and one for each region of a bird.
HSV = np.moveaxis(
    [((0, 180), (20, 150), (50, 220))] * 6
    + [((0, 180), (30, 200), (60, 230))] * 12
    + [
        ((0, 1), (0, 1), (0, 1)),  # the background again, not used
        ((90, 130), (120, 250), (120, 250)),  # tail: blue
        ((5, 20), (100, 250), (100, 250)),  # legs: brown
        ((0, 180), (40, 180), (80, 250)),  # body: any colour
        ((165, 185), (140, 250), (140, 250)),  # crest: red
        ((18, 32), (150, 250), (150, 250)),  # beak: yellow
        ((0, 180), (40, 180), (80, 250)),  # head: not used
        ((40, 80), (120, 250), (130, 250)),  # wing: green
    ],
    2,
    0,
)

# The mark of a class: a symbol within a circle of about radius 1, and its BGR colour
SYMBOLS = (
    _ellipse(0, 0, 0.9, 0.9),
    _polygon(-1, 0.9, 0, -0.9, 1, 0.9),
    np.concatenate([_polygon(0.3, -1, 0.3, -0.3, 1, -0.3) * 1j**n for n in range(4)]),
)
MARK_COLORS = ((30, 30, 220), (40, 150, 20), (220, 60, 30))

CLASSES = tuple(
    f'{crest} crest, {variant} {part}'
    for crest, part in POINTS_TO.items()
    for variant in VARIANTS[part]
)
DECIDING = tuple(('crest', part) for part in POINTS_TO.values() for _ in VARIANTS[part])


def scene(rng: np.random.Generator, label: int) -> tuple[list, list, Bird]:
    """Draws the random content of an image of a class, which does not depend on the image's size.

    Returns:
        tuple: The layers of the background (see ``_layers``), the shapes in front of it (see
        ``_shapes``), and the bird in front of all.
    """
    decides = DECIDING[label][1]
    chosen = dict(zip(VARIANTS, rng.integers(3, size=len(VARIANTS)).tolist()))
    chosen['crest'] = list(POINTS_TO.values()).index(decides)
    chosen[decides] = label % 3
    variants = {part: list(VARIANTS[part])[n] for part, n in chosen.items()}
    hsv = rng.integers(*HSV) % (180, 256, 256)
    colors = cv2.cvtColor(hsv.astype(np.uint8)[None], cv2.COLOR_HSV2BGR)[0].astype(int)
    things = _distractors(rng, colors[6:18])
    bird = Bird(rng, variants, colors[18:])
    return _layers(rng, colors[:6]), things, bird


def class_of(variants: dict[str, str]) -> int:
    """The class of a bird by the variants of its parts."""
    part = POINTS_TO[variants['crest']]
    return CLASSES.index(f'{variants["crest"]} crest, {variants[part]} {part}')


def _layers(rng: np.random.Generator, colors: np.ndarray) -> list[tuple]:
    """Draws a coarse and a fine texture of a background, each of three of the (6, 3) colours.

    A layer is a tuple (grid, map, interpolation). The grid has colours, uint8 of shape (16, 16, 4),
    with the region 0 as last channel. The affine map, of shape (2, 3), leads from the image, in
    units of its side, to the grid. The interpolation is OpenCV's.
    """
    mix = rng.random((2, 256, 3)) ** 3
    mix /= mix.sum(-1, keepdims=True)
    grids = np.zeros((2, 16, 16, 4), np.uint8)
    grids[..., :3] = (mix @ colors.reshape(2, 3, 3)).reshape(2, 16, 16, 3)
    layers = []
    # About 3 cells of the coarse grid on the image's side, and 24 of the fine one
    for grid, cells, numbers in zip(grids, (3, 24), rng.random((2, 6)).tolist()):
        angle, a, b, x, y, sharp = numbers
        # Unequal steps along the two axes: some textures are stripes
        turn = cmath.exp(2j * math.pi * angle)
        a, b = cells * turn * 2 ** (2.5 * a - 1.5), cells * turn * 1j * 2 ** (2.5 * b - 1.5)
        warp = np.array([[a.real, b.real, 16 * x], [a.imag, b.imag, 16 * y]])
        layers.append((grid, warp, cv2.INTER_NEAREST if sharp < 0.3 else cv2.INTER_LINEAR))
    return layers


def _distractors(rng: np.random.Generator, colors: np.ndarray) -> list[tuple]:
    """Draws four or more things at random places, each in the next one of the colours."""
    colors = colors[: rng.integers(4, len(colors) + 1)]
    polygons = []
    for kind, size, angle, x, y in rng.random((len(colors), 5)).tolist():
        move = cmath.rect(0.05 + 0.08 * size, 2 * math.pi * angle)
        polygons.append(DISTRACTORS[int(kind * len(DISTRACTORS))] * move + complex(x, y))
    return _shapes(polygons, colors, [0] * len(polygons))


class Bird:
    """The proportions, colours and pose of a bird.

    Its place in the image follows from all its parts. Without a part or with another variant of it,
    what is left does not move.

    Args:
        rng (np.random.Generator): Draws what is random.
        variants (dict[str, str]): The variant of each part.
        colors (np.ndarray): The colour of each region, integers of shape (8, 3).
    """

    def __init__(
        self, rng: np.random.Generator, variants: dict[str, str], colors: np.ndarray
    ) -> None:
        self.variants = variants
        self._colors = colors
        colors[REGIONS.index('head')] = colors[REGIONS.index('body')]
        self._moves = {}
        for part, numbers in zip(variants, rng.random((5, 2)).tolist()):
            x, y, angle = JOINTS[part]
            turn = math.radians(angle + 24 * numbers[0] - 12)
            self._moves[part] = cmath.rect(0.9 + 0.25 * numbers[1], turn), complex(x, y)
        mirrored, turn, size, across, down = rng.random(5).tolist()
        self._mirrored = mirrored < 0.5
        self._turn = cmath.rect((0.8 + 0.25 * size) / 64, math.radians(50 * turn - 25))
        # The whole bird is in the image
        points = self._turned(np.concatenate(self._outlines(variants)[1]))
        x, y = points.real, points.imag
        left, top, width, height = x.min(), y.min(), np.ptp(x), np.ptp(y)
        self._shrink = min(1.0, 0.94 / max(width, height))
        self._start = complex(left, top)
        self._corner = complex(
            0.03 + across * (0.94 - self._shrink * width),
            0.03 + down * (0.94 - self._shrink * height),
        )

    def shapes(self, variants: dict[str, str | None]) -> list[tuple]:
        """The shapes of the bird, see ``_shapes``, with any variants; None leaves a part out."""
        regions, polygons = self._outlines(variants)
        painted = self._colors[regions]
        for previous, (n, region) in zip([0, *regions], enumerate(regions)):
            if region == previous and REGIONS[region] in LIGHT:
                painted[n] = 250
        ends = np.cumsum([len(polygon) for polygon in polygons])
        return _shapes(np.split(self._placed(polygons), ends[:-1]), painted, regions)

    def fits(self, variants: dict[str, str | None]) -> bool:
        """Whether the image holds the whole bird with these variants."""
        points = self._placed(self._outlines(variants)[1]).view(float)
        return bool(points.min() >= 0 and points.max() <= 1)

    def _outlines(self, variants: dict[str, str | None]) -> tuple[list[int], list[np.ndarray]]:
        """The region and the points of each polygon, from back to front, before the bird is placed."""
        outlines = dict(body=[BODY], head=[HEAD, EYE])
        for part, variant in variants.items():
            move, joint = self._moves[part]
            points = VARIANTS[part][variant] if variant else ()
            outlines[part] = [each * move + joint for each in points]
        regions = [n for n in range(1, MARK) for _ in outlines[REGIONS[n]]]
        return regions, [points for n in range(1, MARK) for points in outlines[REGIONS[n]]]

    def _placed(self, polygons: list[np.ndarray]) -> np.ndarray:
        """The points of all polygons in the image."""
        points = self._turned(np.concatenate(polygons))
        return (points - self._start) * self._shrink + self._corner

    def _turned(self, points: np.ndarray) -> np.ndarray:
        points = points * self._turn
        return -points.conj() if self._mirrored else points


def _shapes(polygons: list[np.ndarray], colors: np.ndarray, regions: list[int]) -> list[tuple]:
    """Polygons with the (n, 3) colours of their inside and of their darker outline.

    Points are in units of the image's side. The region is a fourth channel of the colours.
    """
    fill, line = (np.column_stack([each, regions]).tolist() for each in (colors, colors * 2 // 5))
    return list(zip(polygons, fill, line))


def paint(layers: list[tuple], shapes: list[tuple], size: int) -> np.ndarray:
    """Paints the layers and shapes of a ``scene`` at twice the wanted height and width.

    The same calls paint colour and region, so that they cannot differ.

    Returns:
        np.ndarray: uint8 of shape (2 * size, 2 * size, 4): blue, green, red and region.
    """
    coarse, fine = (
        cv2.warpAffine(
            grid,
            warp * (1 / size, 1 / size, 1),
            (size, size),
            flags=interpolation | cv2.WARP_INVERSE_MAP,
            borderMode=cv2.BORDER_REFLECT,
        )
        for grid, warp, interpolation in layers
    )
    canvas = cv2.addWeighted(coarse, 0.6, fine, 0.4, 0)
    canvas = cv2.resize(canvas, (2 * size, 2 * size), interpolation=cv2.INTER_LINEAR)
    thickness = max(1, round(size / 48))
    corners = _corners(np.concatenate([points for points, _, _ in shapes]), 2 * size)
    start = 0
    for points, inside, outline in shapes:
        part = corners[:, start : start + len(points)]
        start += len(points)
        cv2.fillPoly(canvas, part, inside, cv2.LINE_8, 4)
        cv2.polylines(canvas, part, True, outline, thickness, cv2.LINE_8, 4)
    return canvas


def mark_place(canvas: np.ndarray, rng: np.random.Generator) -> tuple[int, int]:
    """Draws a place beside the bird for a mark: row and column in pixels of the image."""
    regions = _regions(canvas)
    side = _mark_side(canvas)
    # A place is free if there is no bird under it, nor in the pixels around
    taken = cv2.dilate(np.minimum(regions, 1), np.ones((side + 2, side + 2), np.uint8))
    first, places = side // 2, len(regions) - side + 1
    free = np.flatnonzero(taken[first : first + places, first : first + places] == 0)
    return divmod(int(free[rng.integers(len(free))]), places)


def paint_mark(canvas: np.ndarray, label: int, place: tuple[int, int]) -> None:
    """Paints the mark of a class at a ``mark_place``."""
    (y, x), side = place, _mark_side(canvas)
    # OpenCV paints into arrays of its own layout, not into a window of the canvas
    plate = np.full((2 * side, 2 * side, 4), (245, 245, 245, MARK), np.uint8)
    symbol = _corners(SYMBOLS[label % 3] * 0.4 + complex(0.5, 0.5), 2 * side)
    cv2.fillPoly(plate, symbol, (*MARK_COLORS[label // 3], MARK), cv2.LINE_8, 4)
    canvas[2 * y : 2 * (y + side), 2 * x : 2 * (x + side)] = plate


def _mark_side(canvas: np.ndarray) -> int:
    return round(len(canvas) // 2 * 0.16)


def _corners(points: np.ndarray, size: int) -> np.ndarray:
    """Points in OpenCV's fixed-point form, with 4 fractional bits: int32 of shape (1, n, 2)."""
    return np.rint((points * (16 * size)).view(float).reshape(1, -1, 2)).astype(np.int32)


def _regions(canvas: np.ndarray) -> np.ndarray:
    """The last painted region within each pixel of the image, uint8 of shape (size, size)."""
    region = np.maximum(canvas[::2, :, 3], canvas[1::2, :, 3])
    return np.maximum(region[:, ::2], region[:, 1::2])


def develop(canvas: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Makes the image and the label map of a canvas, with noise and with light from one side."""
    size = len(canvas) // 2
    image = cv2.resize(canvas, (size, size), interpolation=cv2.INTER_AREA)[..., :3]
    gain, across, down = (rng.random(3) * (0.35, 0.4, 0.4) + (0.75, -0.2, -0.2)).tolist()
    ramp = np.linspace(-1, 1, size, dtype=np.float32)
    # Channels are put along the rows, since NumPy is slow if the last axis has length three
    light = np.add.outer(ramp * down, np.repeat(ramp * across + gain, 3))
    exposed = image.reshape(size, -1) * light
    exposed += rng.integers(-128, 128, exposed.shape, dtype=np.int8) >> 4  # from -8 to 7
    exposed = np.clip(exposed, 0, 255, out=exposed).astype(np.uint8)
    return exposed.reshape(size, size, 3), _regions(canvas)
