"""Bridging the shapes of a student's and a teacher's activations."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from mmkdx.functional import resize_map, tokens_to_map
from mmkdx.models.projection import OrthogonalProjection


class Adapter(nn.Module):
    """Brings a student's activation to its teacher's shape; trained with the student.

    A linear layer (for maps a 1×1 convolution) matches the channels. An orthogonal one is used for
    equal channels, too. Pooling or interpolation matches sizes. Tokens of both sides become maps
    if ``channels`` is False, if only one side has tokens, or if the numbers of tokens differ.

    Args:
        student (Tensor): A student's activation of shape (N, C, H, W), (N, L, C) or (N, C), real or
            fake.
        teacher (Tensor): The teacher's activation.
        channels (bool): Whether the channels must match; else both sides become maps of one size.
            Defaults to True.
        kind (str): 'auto' or 'orthogonal'; see ``OrthogonalProjection``. Defaults to 'auto'.

    Raises:
        ValueError: If only one side is a vector, both are and ``channels`` is False, or tokens do not
            fill a square grid.
    """

    def __init__(
        self, student: Tensor, teacher: Tensor, channels: bool = True, kind: str = 'auto'
    ) -> None:
        super().__init__()
        shapes = f'{tuple(student.shape)} of the student and {tuple(teacher.shape)} of the teacher'
        dims = {student.dim(), teacher.dim()}
        if dims not in ({3}, {4}, {3, 4}) and (dims != {2} or not channels):
            raise ValueError(f'no adapter bridges {shapes}')
        self.as_maps = not channels or student.shape[1:-1] != teacher.shape[1:-1]
        try:
            student, teacher = self._layout(student), self._layout(teacher)
        except ValueError as error:
            raise ValueError(f'no adapter bridges {shapes}: {error}') from None
        self.project: nn.Module = nn.Identity()
        axis = 1 if student.dim() == 4 else -1
        widths = student.shape[axis], teacher.shape[axis]
        if kind == 'orthogonal':
            self.project = OrthogonalProjection(*widths)
        elif channels and widths[0] != widths[1]:
            self.project = nn.Conv2d(*widths, 1) if axis == 1 else nn.Linear(*widths)

    def check(
        self, student: Tensor, teacher: Tensor, images: Sequence[Sequence[int] | None]
    ) -> None:
        """Checks that tokens that become maps come from square images.

        Args:
            student (Tensor): A student's activation.
            teacher (Tensor): The teacher's activation.
            images (Sequence[Sequence[int] | None]): Height and width of the student's images, and of
                the teacher's.

        Raises:
            ValueError: If images are not square, so that the number of tokens does not give the grid.
        """
        for value, image in zip((student, teacher), images):
            if self.as_maps and value.dim() == 3 and image and image[0] != image[1]:
                raise ValueError(
                    f'the grid of {value.shape[1]} tokens is known only for square images, and these '
                    f'are {image[0]}x{image[1]}'
                )

    def forward(self, student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
        """Returns both activations in one layout, the student's in the teacher's shape."""
        student, teacher = self._layout(student), self._layout(teacher)
        student = self.project(student)
        if student.dim() == 4:
            student = resize_map(student, teacher.shape[-2:])
        return student, teacher

    def _layout(self, tensor: Tensor) -> Tensor:
        return tokens_to_map(tensor) if self.as_maps and tensor.dim() == 3 else tensor
