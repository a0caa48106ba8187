"""Random changes of training images: place, size, brightness, contrast and phase."""

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from potentia._validate import real_number, shape_text
from potentia.training._table import Table

PADDINGS = ("background", "border", "reflect")
PHASES = ("none", "global", "smooth")
WAVES = 8  # that a smooth phase is made of: enough for its values to be close to normal

Range = tuple[float, float]


@dataclass(frozen=True)
class Augment:
    """Change each image of a batch at random, independently of the others.

    In this order: ``flip`` left and right with probability 1/2; turn by up to ``rotate`` degrees either way, magnify
    by a factor of ``scale`` and move by up to ``shift`` pixels along each axis, in one bicubic interpolation whose
    overshoot is clipped to the image's own range, with ``padding`` by the background, the border or reflection; raise
    the magnitude to a power of ``gamma``; multiply by a gain of ``intensity``, counted from the background; multiply
    by a ``phase``, "global", uniform on the circle, or "smooth", that and a map of standard deviation
    ``phase_amplitude`` radians, a sum of waves of up to ``phase_cutoff`` cycles along the longer side. Every number is
    uniform in its range, the waves' wave vectors in their disc. What is off draws no random numbers.

    Shapes: x (N, C, H, W), real or complex; returns the same. One draw an image, for all its channels.
    Units: ``background`` is in the image's, -1 for black in [-1, 1].
    Raises: ValueError for ranges out of order or out of bounds, gamma with a background other than 0, or a phase for
        real images; TypeError for what is no number.
    """

    flip: bool = False
    rotate: float = 0.0
    scale: Range = (1.0, 1.0)
    shift: float = 0.0
    padding: str = "background"
    background: float = 0.0
    intensity: Range = (1.0, 1.0)
    gamma: Range = (1.0, 1.0)
    phase: str = "none"
    phase_amplitude: float = 1.5
    phase_cutoff: float = 1.0

    def __post_init__(self) -> None:
        for name in ("scale", "intensity", "gamma"):
            low, high = (real_number("Augment", name, value) for value in getattr(self, name))
            if not 0 < low <= high:
                raise ValueError(f"Augment: {name} is ({low:g}, {high:g}), expected 0 < low <= high")
        for name, most in (("rotate", 180.0), ("shift", math.inf), ("phase_amplitude", math.inf)):
            value = real_number("Augment", name, getattr(self, name))
            if not 0 <= value <= most:
                raise ValueError(f"Augment: {name} is {value:g}, expected 0 or above" + " to 180" * (most == 180))
        if real_number("Augment", "phase_cutoff", self.phase_cutoff) <= 0:
            raise ValueError(f"Augment: phase_cutoff is {self.phase_cutoff:g}, expected above 0")
        real_number("Augment", "background", self.background)
        for name, allowed in (("padding", PADDINGS), ("phase", PHASES)):
            if getattr(self, name) not in allowed:
                raise ValueError(f"Augment: {name} is {getattr(self, name)!r}, expected one of {', '.join(allowed)}")
        if self.gamma != (1, 1) and self.background != 0:
            raise ValueError(f"Augment: gamma is for magnitudes above 0, but background is {self.background:g}")

    @classmethod
    def from_spec(cls, spec: Mapping[str, Any]) -> "Augment":
        """Make one from the table [augment] of a recipe, whose keys are the fields.

        Raises: ValueError for unknown keys and values that will not do.
        """
        table = Table("[augment]", spec, [field.name for field in dataclasses.fields(cls)])
        values: dict[str, Any] = {}
        for name in table.values:
            if name == "flip":
                values[name] = table.flag(name, False)
            elif name in ("padding", "phase"):
                values[name] = table.choice(name, "", PADDINGS if name == "padding" else PHASES)
            elif name in ("scale", "intensity", "gamma"):
                values[name] = table.numbers(name, (1.0, 1.0))
            else:
                values[name] = table.number(name, 0.0)
        return cls(**values)

    def __call__(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """Draw a change for each image and apply it."""
        if x.ndim != 4:
            raise ValueError(f"Augment: images have shape {shape_text(tuple(x.shape))}, expected (N, C, H, W)")
        if self.phase != "none" and not x.is_complex():
            raise ValueError(f"Augment: phase is {self.phase!r} and images have dtype {x.dtype}, expected complex ones")
        if self.flip:
            chosen = torch.rand(len(x), generator=generator, device=generator.device) < 0.5
            x = torch.where(_column(chosen, x), x.flip(-1), x)
        if self.rotate or self.shift or self.scale != (1, 1):
            x = self._placed(x, generator)
        if self.gamma != (1, 1):
            x = torch.sgn(x) * x.abs() ** _column(_uniform(len(x), *self.gamma, generator), x)
        if self.intensity != (1, 1):
            gain = _column(_uniform(len(x), *self.intensity, generator), x)
            x = (x - self.background) * gain + self.background
        if self.phase != "none":
            phase = self._phases(x, generator)
            x = x * torch.polar(torch.ones_like(phase), phase)
        return x

    def _placed(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """Turn, magnify and move each image."""
        number, _, height, width = x.shape
        angle = _uniform(number, -self.rotate, self.rotate, generator) * (math.pi / 180)
        scale = _uniform(number, *self.scale, generator)
        shift = _uniform((number, 2), -self.shift, self.shift, generator)
        grid = _grid(angle, scale, shift, height, width).to(x.real)
        zero = self.background if self.padding == "background" else 0.0
        x = x - zero if zero else x
        if x.is_complex():
            imaginary = _sampled(x.imag, grid, self.padding) if x.imag.any() else torch.zeros_like(x.imag)
            x = torch.complex(_sampled(x.real, grid, self.padding), imaginary)
        else:
            x = _sampled(x, grid, self.padding)
        return x + zero if zero else x

    def _phases(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """Draw a phase for each image: (N, 1, H, W), or (N, 1, 1, 1) if it is global."""
        number, _, height, width = x.shape
        phase = _uniform((number, 1, 1, 1), -math.pi, math.pi, generator)
        if self.phase == "smooth":
            radius = _uniform((number, WAVES), 0, 1, generator).sqrt() * (2 * math.pi * self.phase_cutoff)
            direction = _uniform((number, WAVES), 0, 2 * math.pi, generator)
            offset = _uniform((number, WAVES), 0, 2 * math.pi, generator)
            rows, columns = (
                torch.arange(n, dtype=torch.float32, device=phase.device) / max(height, width) for n in (height, width)
            )
            down = (radius * direction.sin())[..., None] * rows + offset[..., None]
            along = (radius * direction.cos())[..., None] * columns
            # cos(a + b) summed over the waves, as one product of matrices
            left, right = torch.cat([down.cos(), -down.sin()], 1), torch.cat([along.cos(), along.sin()], 1)
            waves = left.transpose(1, 2) @ right
            phase = phase + (self.phase_amplitude * math.sqrt(2 / WAVES)) * waves[:, None]
        return phase.to(x.real)


def _uniform(shape: int | tuple[int, ...], low: float, high: float, generator: torch.Generator) -> Tensor:
    shape = (shape,) if isinstance(shape, int) else shape
    return low + (high - low) * torch.rand(shape, generator=generator, device=generator.device)


def _column(values: Tensor, x: Tensor) -> Tensor:
    """(N,) -> (N, 1, 1, 1), on the device of the images and in their precision."""
    values = values[:, None, None, None].to(x.device)
    return values if values.dtype == torch.bool else values.to(x.real.dtype)


def _grid(angle: Tensor, scale: Tensor, shift: Tensor, height: int, width: int) -> Tensor:
    """Where each pixel of the result is taken from, in the units of torch's grid_sample: (N, H, W, 2).

    A pixel at p, counted from the centre, comes from R(-angle) (p - shift) / scale; x runs right and y down.
    """
    half = torch.tensor([width / 2, height / 2], device=angle.device)
    cos, sin = angle.cos() / scale, angle.sin() / scale
    turn = torch.stack([cos, sin, -sin, cos], dim=-1).reshape(-1, 2, 2)
    move = -(turn @ shift[..., None])[..., 0] / half
    theta = torch.cat([turn * half / half[:, None], move[..., None]], dim=-1)
    return torch.nn.functional.affine_grid(theta, [len(angle), 1, height, width], align_corners=False)


def _sampled(x: Tensor, grid: Tensor, padding: str) -> Tensor:
    """Interpolate real images bicubically; overshoot is clipped to the range of each channel and what pads it."""
    mode = {"background": "zeros", "border": "border", "reflect": "reflection"}[padding]
    out = torch.nn.functional.grid_sample(x, grid, mode="bicubic", padding_mode=mode, align_corners=False)
    low, high = x.amin(dim=(2, 3), keepdim=True), x.amax(dim=(2, 3), keepdim=True)
    if padding == "background":
        low, high = low.clamp(max=0), high.clamp(min=0)
    return out.clamp(low, high)
