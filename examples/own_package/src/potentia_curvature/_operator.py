"""Sums of rows and columns: a scanner with two views."""

from typing import ClassVar

import torch
from torch import Tensor

from potentia.likelihoods import Operator


class Margins(Operator):
    """A x = (sum of each row, sum of each column) of every channel.

    Shapes: x (*batch, C, H, W); y (*batch, C, H + W), rows first; plane (H, W).
    Raises: ValueError for images of another plane.
    """

    output_dims: ClassVar[int] = 2

    def __init__(self, plane: tuple[int, int]) -> None:
        super().__init__()
        self.height, self.width = plane

    def forward(self, x: Tensor) -> Tensor:
        """A x: (*batch, C, H, W) -> (*batch, C, H + W)."""
        self.output_shape(tuple(x.shape[-3:]))
        return torch.cat([x.sum(-1), x.sum(-2)], -1)

    def adjoint(self, y: Tensor) -> Tensor:
        """A^H y, each sum handed back to all of its pixels: (*batch, C, H + W) -> (*batch, C, H, W)."""
        rows, columns = y.split([self.height, self.width], -1)
        return rows[..., :, None] + columns[..., None, :]

    def output_shape(self, input_shape: tuple[int, ...]) -> tuple[int, ...]:
        """(C, H, W) -> (C, H + W)."""
        channels, *plane = input_shape
        if tuple(plane) != (self.height, self.width):
            raise ValueError(f"Margins: images are {tuple(plane)}, expected {(self.height, self.width)}")
        return channels, self.height + self.width

    def input_shape(self, output_shape: tuple[int, ...]) -> tuple[int, ...]:
        """(C, H + W) -> (C, H, W)."""
        channels, length = output_shape
        if length != self.height + self.width:
            raise ValueError(f"Margins: measurements have {length} sums, expected {self.height + self.width}")
        return channels, self.height, self.width

    def extra_repr(self) -> str:
        """The plane, for the printed tree."""
        return f"{self.height} x {self.width}"
