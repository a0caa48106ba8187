"""X-ray tomography: line integrals along parallel and along fanned-out rays."""

import math
from abc import abstractmethod
from collections.abc import Iterator
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from potentia._quadratic import Fourier, Structure
from potentia._validate import Shape, count, positive, real_number, same_shape, shape_text, tensor
from potentia.likelihoods._basic import as_precision
from potentia.likelihoods._linear_map import linear_map
from potentia.likelihoods._operator import Operator, Weight

# Points on rays, times images, that are sampled at once: bounds the memory beside image and sinogram.
_POINTS_AT_ONCE = 2**22


class _Bundle(NamedTuple):
    """Some rays that all run more up than across, or all more across than up.

    Shapes: which (r,) among all rays; grid (1, r, n, 2), where they meet rows or columns; length (r,).
    """

    which: Tensor
    grid: Tensor
    length: Tensor


class _Rays(Operator):
    """Line integrals of the image along straight rays, by Joseph's method.

    A ray that runs more up than across meets every row of pixels once: there, the image is interpolated linearly
    between two pixels, and the sum over rows is multiplied by the ray's length from one row to the next. For rays that
    run more across than up, read columns. Beyond its edge, the image is zero.

    Subclasses give the rays, x to the right and y up from the centre of the image, in pixels, and how far apart they
    are there.

    Source: Joseph 1982, An improved algorithm for reprojecting rays through pixel images.
    """

    angles: Tensor
    lines: Tensor
    steep: Tensor

    def __init__(self, angles: Tensor, plane: tuple[int, int], points: Tensor, directions: Tensor) -> None:
        super().__init__()
        self.plane = plane
        self.num_detectors = points.shape[1]
        steep = directions[..., 1].abs() >= directions[..., 0].abs()
        height, width = plane
        middle_x, middle_y = (width - 1) / 2, (height - 1) / 2
        (x, y), (u, v) = points.unbind(-1), directions.unbind(-1)
        # Column as a function of the row, or row of the column: its value at 0, its slope; the length of a step.
        by_row = torch.stack([middle_x + x + (middle_y - y) * u / v, -u / v, 1 / v.abs()], -1)
        by_column = torch.stack([middle_y - y + (middle_x + x) * v / u, -v / u, 1 / u.abs()], -1)
        lines = torch.where(steep[..., None], by_row, by_column)
        self.register_buffer("angles", angles)
        self.register_buffer("lines", lines.flatten(0, 1).to(angles.dtype))
        self.register_buffer("steep", steep.flatten())

    @property
    @abstractmethod
    def central_spacing(self) -> float:
        """Distance of neighbouring rays at the centre of the image, in pixels."""

    @property
    def fan(self) -> Tensor:
        """By how much, in radians, the rays at one angle differ in direction: a few examples, (J,), double."""
        return torch.zeros(1, dtype=torch.float64, device=self.angles.device)

    def _bundles(self, images: int, dtype: torch.dtype) -> Iterator[_Bundle]:
        height, width = self.plane
        lines = self.lines.to(dtype)
        for steep, steps, across in ((True, height, width), (False, width, height)):
            index = (self.steep == steep).nonzero()[:, 0]
            k = torch.arange(steps, dtype=dtype, device=lines.device)
            # What grid_sample calls -1 and 1 are the outer edges of the first and the last pixel.
            along = (2 * k + 1) / steps - 1
            for part in index.split(max(1, _POINTS_AT_ONCE // (images * steps))):
                start, slope, length = lines[part].unbind(-1)
                position = (2 * (start[:, None] + slope[:, None] * k) + 1) / across - 1
                pair = (position, along.expand_as(position))
                yield _Bundle(part, torch.stack(pair if steep else pair[::-1], -1)[None], length)

    def forward(self, x: Tensor) -> Tensor:
        if x.is_complex():
            return torch.complex(*self.forward(torch.stack([x.real, x.imag])))
        flat = x.reshape(1, -1, *self.plane)
        out = flat.new_zeros(flat.shape[1], self.lines.shape[0])
        for rays in self._bundles(flat.shape[1], x.dtype):
            samples = torch.nn.functional.grid_sample(flat, rays.grid, padding_mode="zeros", align_corners=False)
            out = out.index_copy(1, rays.which, samples[0].sum(-1) * rays.length)
        return out.reshape(*x.shape[:-2], -1, self.num_detectors)

    def adjoint(self, y: Tensor) -> Tensor:
        if y.is_complex():
            return torch.complex(*self.adjoint(torch.stack([y.real, y.imag])))
        return linear_map(y, self._back_project, self.forward)

    def _back_project(self, y: Tensor) -> Tensor:
        flat = y.reshape(-1, self.lines.shape[0])
        out = y.new_zeros(1, flat.shape[0], *self.plane)
        for rays in self._bundles(flat.shape[0], y.dtype):
            spread = (flat[:, rays.which] * rays.length)[None, ..., None].expand(-1, -1, -1, rays.grid.shape[2])
            # Bilinear, zeros beyond the edge, as in ``forward``; the gradient of the image alone.
            out = out + torch.ops.aten.grid_sampler_2d_backward(spread, out, rays.grid, 0, 0, False, [True, False])[0]
        return out.reshape(*y.shape[:-2], *self.plane)

    def output_shape(self, input_shape: Shape) -> Shape:
        shape = tuple(input_shape)
        same_shape(type(self).__name__, "the image", shape, (*shape[:1], *self.plane))
        return (shape[0], self.angles.numel(), self.num_detectors)

    def input_shape(self, output_shape: Shape) -> Shape:
        shape = tuple(output_shape)
        same_shape(type(self).__name__, "the sinogram", shape, (*shape[:1], self.angles.numel(), self.num_detectors))
        return (shape[0], *self.plane)

    def gram(self, weight: Weight, input_shape: Shape) -> Structure:
        """Matrix-free, with the circulant matrix that is nearest to the one of rays of all offsets (T. Chan 1988).

        Between pixels tau apart, a direction counts spline(tau . n / c) / (c spacing): n is across the rays, c its
        larger component and the spline, cubic, what linear interpolation overlaps with itself. Summed over many
        angles, that is the 1 / |tau| of unfiltered back-projection, the inverse of the ramp filter.
        """
        w = as_precision(weight, self.lines).to(self.lines.dtype)
        per_angle = w.mean(-1).expand(-1, self.angles.numel())
        return self._matrix_free(weight, input_shape, Fourier(self._spectrum(per_angle)))

    def _spectrum(self, weights: Tensor) -> Tensor:
        """Of the approximation: weights (C or 1, A) -> (C or 1, H, W)."""
        height, width = self.plane
        fan = self.fan.to(weights.dtype)
        theta = (torch.deg2rad(self.angles).to(weights)[:, None] + fan).flatten()
        each = weights.repeat_interleave(fan.numel(), 1) / (fan.numel() * self.central_spacing)
        cos, sin = torch.cos(theta), torch.sin(theta)
        steep = cos.abs() >= sin.abs()
        # y points up in the rays' frame and rows go down, so that n . tau is cos(theta) column - sin(theta) row.
        kernel = _star(each[:, steep] / cos[steep].abs(), (sin / cos)[steep], (height, width))
        kernel = kernel + _star(each[:, ~steep] / sin[~steep].abs(), (cos / sin)[~steep], (width, height)).mT
        spectrum: Tensor = torch.fft.fft2(kernel).real
        return spectrum.clamp_min(0.0)

    def extra_repr(self) -> str:
        return f"{self.angles.numel()} angles, {self.num_detectors} detectors, {shape_text(self.plane)}"


def _star(weights: Tensor, slopes: Tensor, plane: tuple[int, int]) -> Tensor:
    """Lines through the origin, drawn by cubic splines across, as the first rows of a circulant matrix.

    Offsets count by the share of the pixels that have a neighbour there, and wrap around.

    Shapes: weights (C, K); slopes (K,), columns a row; plane (H, W) -> (C, H, W).
    """
    height, width = plane
    row = torch.arange(1 - height, height, device=slopes.device)
    middle = slopes[:, None, None] * row[:, None]
    column = middle.floor() + torch.arange(-1, 3, device=slopes.device)
    distance = (column - middle).abs()
    spline = torch.where(distance < 1, 2 / 3 - distance**2 + distance**3 / 2, (2 - distance) ** 3 / 6)
    share = (1 - row.abs()[:, None] / height) * (1 - column.abs() / width).clamp_min(0.0)
    values = (weights[..., None, None] * (spline * share)).flatten(1)
    index = (row[:, None] % height) * width + column.long() % width
    return weights.new_zeros(len(weights), height * width).index_add(1, index.flatten(), values).reshape(-1, *plane)


class Radon(_Rays):
    """A x = line integrals of x along parallel rays: tomography.

    At angle theta, counter-clockwise from the x axis as the image is seen (y points down), detector d measures along
    the line x cos(theta) + y sin(theta) = s_d, with y up, the origin in the centre of the image, ((H - 1) / 2,
    (W - 1) / 2), and s_d = (d - (num_detectors - 1) / 2) * spacing. A x is in the image's unit times pixels:
    ``pixel_size * Radon(...)`` has a length in its place.

    Shapes: angles (A,); shape the images' (H, W) or (C, H, W); (*batch, C, H, W) -> (*batch, C, A, num_detectors), by
        default as many detectors as cover the image's diagonal.
    Units: angles in degrees, of which half a turn sees everything; spacing in pixels.
    Raises: ValueError for angles that are not finite, spacing <= 0, or num_detectors < 1.
    Source: Radon 1917; discretised after Joseph 1982.
    """

    def __init__(self, angles: object, shape: Shape, *, num_detectors: int | None = None, spacing: float = 1.0) -> None:
        degrees, plane = _angles("Radon", angles), _plane("Radon", shape)
        self._spacing = positive("Radon", "spacing", spacing)
        s = _positions("Radon", math.hypot(*plane), num_detectors, self._spacing)
        across, along = _axes(degrees)
        points = across[:, None] * s[:, None]
        super().__init__(degrees, plane, points, along[:, None].expand_as(points))

    @property
    def central_spacing(self) -> float:
        return self._spacing


class FanBeam(_Rays):
    """A x = line integrals of x along rays that fan out from a source: tomography.

    At angle theta, the source stands at -source_distance * t and the middle of the detector at detector_distance * t,
    with t = (-sin(theta), cos(theta)), x to the right and y up from the centre of the image, ((H - 1) / 2,
    (W - 1) / 2). Detector d lies s_d = (d - (num_detectors - 1) / 2) * spacing along a line in direction (cos(theta),
    sin(theta)), or along an arc around the source. With the source far away, this is ``Radon`` at the same angles.

    Shapes: angles (A,); shape the images' (H, W) or (C, H, W); (*batch, C, H, W) -> (*batch, C, A, num_detectors), by
        default as many detectors as see the whole image.
    Units: angles in degrees, of which a full turn sees everything twice; distances and spacing in pixels.
    Raises: ValueError for angles that are not finite, a source within the image, detector_distance < 0, spacing <= 0,
        num_detectors < 1, or a detector that is neither "flat" nor "arc".
    Source: Kak and Slaney 1988, chapter 3.4; discretised after Joseph 1982.
    """

    def __init__(
        self,
        angles: object,
        shape: Shape,
        source_distance: float,
        detector_distance: float,
        *,
        num_detectors: int | None = None,
        spacing: float = 1.0,
        detector: Literal["flat", "arc"] = "flat",
    ) -> None:
        degrees, plane = _angles("FanBeam", angles), _plane("FanBeam", shape)
        radius = math.hypot(*plane) / 2
        source = positive("FanBeam", "source_distance", source_distance)
        behind = real_number("FanBeam", "detector_distance", detector_distance)
        if source <= radius or behind < 0:
            raise ValueError(
                f"FanBeam: source_distance is {source:g} and detector_distance {behind:g}, expected more than half the "
                f"image's diagonal, {radius:g}, and at least 0"
            )
        if detector not in ("flat", "arc"):
            raise ValueError(f"FanBeam: detector is {detector!r}, expected 'flat' or 'arc'")
        self._central = positive("FanBeam", "spacing", spacing) * source / (source + behind)
        self._widest = math.asin(min(plane) / 2 / source)
        widest = math.asin(radius / source)
        extent = 2 * (source + behind) * (widest if detector == "arc" else math.tan(widest))
        s = _positions("FanBeam", extent, num_detectors, spacing)[:, None] / (source + behind)
        if detector == "flat":
            s = torch.atan(s)
        across, along = (axis[:, None] for axis in _axes(degrees))
        directions = along * torch.cos(s) + across * torch.sin(s)
        super().__init__(degrees, plane, (-source * along).expand_as(directions), directions)

    @property
    def central_spacing(self) -> float:
        return self._central

    @property
    def fan(self) -> Tensor:
        """Nine directions of the rays that meet the largest disc within the image."""
        return torch.linspace(-self._widest, self._widest, 9, dtype=torch.float64, device=self.angles.device)


def _plane(where: str, shape: Shape) -> tuple[int, int]:
    if len(shape) not in (2, 3):
        raise ValueError(f"{where}: shape is {shape_text(tuple(shape))}, expected (H, W) or (C, H, W)")
    return count(where, "H", shape[-2]), count(where, "W", shape[-1])


def _angles(where: str, angles: object) -> Tensor:
    degrees = tensor(where, "angles", angles)
    if degrees.dim() != 1 or degrees.is_complex():
        raise ValueError(
            f"{where}: angles have shape {shape_text(tuple(degrees.shape))} and dtype {degrees.dtype}, expected real "
            "(A,)"
        )
    return degrees


def _positions(where: str, extent: float, number: int | None, spacing: float) -> Tensor:
    """Positions along the detector, symmetric about its middle: (D,), double."""
    n = max(1, math.ceil(extent / spacing)) if number is None else count(where, "num_detectors", number)
    return (torch.arange(n, dtype=torch.float64) - (n - 1) / 2) * spacing


def _axes(degrees: Tensor) -> tuple[Tensor, Tensor]:
    """Directions along the detector and along the central ray: two of (A, 2), as (x, y), double, on the CPU."""
    theta = torch.deg2rad(degrees.double().cpu())
    cos, sin = torch.cos(theta), torch.sin(theta)
    return torch.stack([cos, sin], -1), torch.stack([-sin, cos], -1)
