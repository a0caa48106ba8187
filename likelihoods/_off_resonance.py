"""Off-resonance: phases that grow during the readout where the field is not the nominal one."""

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from potentia._structure import MatrixFree, Shift, Structure
from potentia._validate import Shape, count, same_shape, shape_text, tensor
from potentia.likelihoods._operator import Operator, Weight

BINS = 256  # of the histogram of the field map, for the fit
CHUNK = 4096  # pixels, when the error is looked at


class OffResonance(Operator):
    """(A x)(k) = sum over pixels r of exp(-2 pi i f(r) t(k)) of what ``operator`` makes of x at r, in time segments.

    The phase is approximated by ``segments`` products, exp(-2 pi i f t) = sum_l b_l(t) exp(-2 pi i f t_l), with t_l
    in the middle of equal parts of the readout and b_l the least-squares fit over the histogram of the field map: one
    application of ``operator`` a segment. ``error`` is what that leaves: the largest |sum - exp| over all pixels and
    readout times, relative to one; it falls fast once there are more segments than field_range * readout_duration.

    Shapes: field_map (H, W) or (C, H, W); readout_times broadcasting against measurements: (W,) for Cartesian k-space
        read along rows, (H, 1) along columns, (M,) for ``NonCartesian``; images and measurements as of ``operator``.
    Units: field_map in Hz, readout_times in seconds, from the time at which phases are zero.
    Raises: ValueError for an operator of real images, or shapes that do not broadcast.
    Source: Noll et al. 1991 (time segments); Sutton, Noll and Fessler 2003 (least-squares interpolators).
    """

    field_map: Tensor
    coefficients: Tensor
    segment_times: Tensor

    def __init__(self, operator: Operator, field_map: object, readout_times: object, segments: int = 6) -> None:
        super().__init__()
        if not operator.complex_input(True):
            raise ValueError(f"OffResonance: {operator.describe()} takes real images, which phases turn complex")
        field = tensor("OffResonance", "field_map", field_map)
        times = tensor("OffResonance", "readout_times", readout_times)
        if field.is_complex() or field.dim() not in (2, 3):
            raise ValueError(
                f"OffResonance: field_map has shape {shape_text(tuple(field.shape))}, expected real (H, W) or (C, H, W)"
            )
        if times.is_complex() or times.dim() > operator.output_dims:
            raise ValueError(
                f"OffResonance: readout_times have shape {shape_text(tuple(times.shape))}, expected real times for "
                f"measurements of {operator.output_dims} dimensions"
            )
        self.operator = operator
        self.output_dims = operator.output_dims  # type: ignore[misc]
        self.segments = count("OffResonance", "segments", segments)
        self.register_buffer("field_map", field)
        unique, where = times.double().unique(return_inverse=True)
        place = (torch.arange(self.segments, dtype=torch.float64, device=unique.device) + 0.5) / self.segments
        at = unique[0] + (unique[-1] - unique[0]) * place
        fit = _interpolators(field.double(), unique, at)
        self.error = _largest_error(field.double(), unique, at, fit)
        precision = times.dtype.to_complex()
        self.register_buffer("coefficients", fit[:, where].reshape(self.segments, *times.shape).to(precision))
        self.register_buffer("segment_times", at.to(times.dtype))

    def _phase(self, segment: int) -> Tensor:
        return _phase(self.segment_times[segment], self.field_map)

    def forward(self, x: Tensor) -> Tensor:
        first, *others = range(self.segments)
        total: Tensor = self.coefficients[first] * self.operator(self._phase(first) * x)
        for s in others:
            total = total + self.coefficients[s] * self.operator(self._phase(s) * x)
        return total

    def adjoint(self, y: Tensor) -> Tensor:
        first, *others = range(self.segments)
        total = self._phase(first).conj() * self.operator.adjoint(self.coefficients[first].conj() * y)
        for s in others:
            total = total + self._phase(s).conj() * self.operator.adjoint(self.coefficients[s].conj() * y)
        return total

    def output_shape(self, input_shape: Shape) -> Shape:
        shape = tuple(input_shape)
        same_shape("OffResonance", "the image", shape[-self.field_map.dim() :], tuple(self.field_map.shape))
        return self._check_times(self.operator.output_shape(shape))

    def input_shape(self, output_shape: Shape) -> Shape:
        shape = self.operator.input_shape(self._check_times(tuple(output_shape)))
        same_shape("OffResonance", "the image", shape[-self.field_map.dim() :], tuple(self.field_map.shape))
        return shape

    def _check_times(self, measured: Shape) -> Shape:
        times = tuple(self.coefficients.shape[1:])
        if any(a not in (1, b) for a, b in zip(times[::-1], measured[::-1], strict=False)):
            got, want = shape_text(times), shape_text(measured)
            raise ValueError(f"OffResonance: readout_times {got} do not broadcast against measurements {want}")
        return measured

    def gram(self, weight: Weight, input_shape: Shape) -> Structure:
        """Matrix-free, preconditioned by the operator with the phases of the middle of the readout at all times."""
        still, free = self.operator.gram(weight, input_shape), self._matrix_free(weight, input_shape)
        free_inverse = still.near_inverse if isinstance(still, MatrixFree) else None
        if isinstance(still, MatrixFree) and free_inverse is None:
            return free
        phase = _phase(self.segment_times.mean(), self.field_map)

        def near_inverse(shift: Shift, spectrum: Tensor | None = None) -> Callable[[Tensor], Tensor] | None:
            if spectrum is not None:  # which the phases would smear
                return None
            inverse = partial(still.solve, shift=shift) if free_inverse is None else free_inverse(shift)
            return None if inverse is None else lambda v: phase.conj() * inverse(phase * v)

        return replace(free, near_inverse=near_inverse)

    def complex_output(self, complex_input: bool) -> bool:
        return True

    def complex_input(self, complex_output: bool) -> bool:
        return self.operator.complex_input(complex_output)

    @property
    def sampled(self) -> Tensor | None:
        return self.operator.sampled

    def describe(self) -> str:
        return f"OffResonance({self.operator.describe()}, {self.segments} segments, error {self.error:.1e})"


def _phase(time: Tensor, field: Tensor) -> Tensor:
    angle = -2 * math.pi * time * field
    phase: Tensor = torch.polar(torch.ones_like(angle), angle)
    return phase


def _interpolators(field: Tensor, times: Tensor, at: Tensor) -> Tensor:
    """Least-squares coefficients over the histogram of the field: (segments, times), complex128."""
    low, high = field.min(), field.max()
    counts = torch.histc(field, BINS, float(low), float(high)) if high > low else torch.ones(1, dtype=field.dtype)
    place = (torch.arange(len(counts), dtype=field.dtype, device=field.device) + 0.5) / len(counts)
    centres = low + (high - low) * place
    # Every frequency between the extremes counts a little, so that no pixel is left out of the fit.
    weight = (counts.to(field.device) + 0.01 * field.numel() / len(counts)).sqrt()[:, None]
    basis, target = weight * _phases(centres, at), weight * _phases(centres, times)
    left, values, right = torch.linalg.svd(basis, full_matrices=False)
    # Times closer together than the field's spread resolves are alike: their difference is rounding.
    kept = values > 1e-10 * values[0]
    fit: Tensor = (right[kept].mH / values[kept]) @ (left[:, kept].mH @ target)
    return fit


def _phases(field: Tensor, times: Tensor) -> Tensor:
    return _phase(times, field.flatten()[:, None])


def _largest_error(field: Tensor, times: Tensor, at: Tensor, fit: Tensor) -> float:
    return max(
        float((_phases(f, at) @ fit - _phases(f, times)).abs().max()) for f in field.flatten().unique().split(CHUNK)
    )
