"""The spatial arrangement of activations and of a model's tokens."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

#: The most class, distillation and register tokens before the image's.
_MAX_EXTRA_TOKENS = 8


@dataclass(frozen=True)
class Layout:
    """The spatial arrangement of activations.

    Args:
        size (tuple[int, int]): Height and width of the map.
        kind (str): 'nchw', 'nhwc', 'tokens' (N, extra + height · width, C) or 'ncl' (N, C, height ·
            width).
        extra (int): Tokens in front that are no part of the image. Defaults to 0.
    """

    size: tuple[int, int]
    kind: str
    extra: int = 0

    def to_map(self, value: Tensor) -> Tensor:
        """Brings activations or their gradient to the shape (N, C, height, width)."""
        if self.kind == 'nchw':
            return value
        if self.kind == 'nhwc':
            return value.permute(0, 3, 1, 2)
        if self.kind == 'ncl':
            return value.unflatten(2, self.size)
        return value[:, self.extra :].transpose(1, 2).unflatten(2, self.size)

    @classmethod
    def of(
        cls,
        shape: Sequence[int],
        image: Sequence[int],
        extra: int | None = None,
        channels_last: bool | None = None,
        grids: Collection[tuple[int, int]] = (),
    ) -> Layout | None:
        """Finds the layout of activations; None if they are not spatial.

        Args:
            shape (Sequence[int]): Their shape, with the batch.
            image (Sequence[int]): Height and width of the image.
            extra (int, optional): The number of extra tokens, if known. Defaults to None: the first that
                leaves one of ``grids``, a grid of whole patches, or else of the image's proportions, 0
                to 2 before more.
            channels_last (bool, optional): Whether tokens or (N, C, height · width) are more likely,
                where both are possible, as with 1024 channels. Defaults to None (tokens with 0 to 2
                extra ones).
            grids (Collection[tuple[int, int]]): Possible sizes of the model's grid of patches. Defaults
                to none (unknown).
        """
        if len(shape) == 4:
            _, a, b, c = shape
            if _is_grid(b, c, image):
                return cls((b, c), 'nchw')
            if _is_grid(a, b, image):
                return cls((a, b), 'nhwc')
        if len(shape) == 3:
            _, a, b = shape
            candidates = [
                *(('tokens', a, n) for n in (range(3) if extra is None else [extra])),
                ('ncl', b, 0),
                *(('tokens', a, n) for n in range(3, _MAX_EXTRA_TOKENS + 1)),
            ]
            if channels_last is not None:
                candidates.sort(key=lambda candidate: (candidate[0] == 'ncl') == channels_last)
            if min(a, b) > 1:
                return cls._fitting(candidates, image, extra is not None, grids)
        return None

    @classmethod
    def of_tokens(
        cls,
        length: int,
        image: Sequence[int],
        extra: int | None = None,
        grids: Collection[tuple[int, int]] = (),
    ) -> Layout | None:
        """Finds the layout of a sequence of tokens; see ``of``."""
        counts = range(_MAX_EXTRA_TOKENS + 1) if extra is None else [extra]
        candidates = [('tokens', length, n) for n in counts]
        return cls._fitting(candidates, image, extra is not None, grids)

    @classmethod
    def of_stage(cls, length: int, grids: Collection[tuple[int, int]]) -> Layout | None:
        """Finds the layout of a stage's tokens. Their grid is the patch grid, halved or not."""
        for height, width in sorted(grids) if length > 1 else ():
            while height * width > length:
                height, width = -(-height // 2), -(-width // 2)
            if height * width == length:
                return cls((height, width), 'tokens')
        return None

    @classmethod
    def _fitting(
        cls,
        candidates: Sequence[tuple[str, int, int]],
        image: Sequence[int],
        certain: bool,
        grids: Collection[tuple[int, int]],
    ) -> Layout | None:
        """Returns the first of (kind, count of positions, extra tokens) that is a grid."""
        known = [lambda *sides: sides[:2] in grids] if grids else []
        for fits in [*known, *([] if certain else [_is_patched]), _is_grid]:
            for kind, count, skipped in candidates:
                for height in range(1, count - skipped + 1):
                    width, rest = divmod(count - skipped, height)
                    if not rest and fits(height, width, image):
                        return cls((height, width), kind, skipped)
        return None


def extra_tokens(model: nn.Module) -> int | None:
    """Returns the number of a model's class, distillation and register tokens; None if unknown."""
    for owner in (getattr(model, 'backbone', None), getattr(model, 'model', None), model):
        # The names in mmpretrain and timm
        for name in ('num_extra_tokens', 'num_prefix_tokens'):
            if isinstance(count := getattr(owner, name, None), int):
                return count
        # The name in Hugging Face, beside a class token
        registers = getattr(getattr(owner, 'config', None), 'num_register_tokens', None)
        if registers is not None:
            return 1 + registers
    return None


def patch_grids(model: nn.Module, images: Tensor) -> set[tuple[int, int]]:
    """Returns the possible patch grids, rounded down or up; none without patch embedding."""
    _, channels, height, width = images.shape
    for module in model.modules():
        if isinstance(module, nn.Conv2d) and module.in_channels == channels:
            (rows, columns), one = module.stride, (1, 1)
            if module.kernel_size != module.stride or module.stride == one:
                return set()
            return {(height // rows, width // columns), (-(-height // rows), -(-width // columns))}
    return set()


def _is_grid(height: int, width: int, image: Sequence[int]) -> bool:
    """Whether a size is the image's, reduced in proportion and rounded."""
    return (
        1 < height * width
        and height <= image[0]
        and width <= image[1]
        and abs(width - height * image[1] / image[0]) < max(1, image[1] / image[0])
    )


def _is_patched(height: int, width: int, image: Sequence[int]) -> bool:
    """Whether square patches of this grid cover the whole image."""
    patch = image[0] // height
    return height * width > 1 and (height * patch, width * patch) == tuple(image)
