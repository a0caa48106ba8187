"""What several energies share: widening, checks of constructor arguments, optional imports."""

import importlib
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from potentia._potential import Energy, Scales, Sigma
from potentia._tensor import EVENT_DIMS
from potentia._validate import count, shape_text, tensor

Event = tuple[int, ...]


def wide(t: Tensor) -> Tensor:
    """Convert to double precision; single on Apple's GPUs, which have no double."""
    precision = torch.float32 if t.device.type == "mps" else torch.float64
    return t.to(precision.to_complex() if t.is_complex() else precision)


def number_or_tensor(where: str, what: str, value: object) -> Tensor:
    """Return a finite tensor; a Python number becomes a 0-d double, which leaves the dtype of images alone.

    Raises: TypeError for what is neither; ValueError for NaN or infinite entries.
    """
    if isinstance(value, int | float | complex) and not isinstance(value, bool):
        value = torch.tensor(value, dtype=torch.complex128 if isinstance(value, complex) else torch.float64)
    return tensor(where, what, value)


def positive_entries(where: str, what: str, t: Tensor, *, zero: bool = False) -> None:
    """Refuse complex, negative and (unless ``zero``) zero entries.

    Raises: ValueError that gives the least entry.
    """
    if t.is_complex():
        raise ValueError(f"{where}: {what} has dtype {t.dtype}, expected a real one")
    least = float(t.min())
    if least < 0 or (least == 0 and not zero):
        raise ValueError(f"{where}: {what} must be {'zero or more' if zero else 'positive'}, got {least:g}")


def scale_range(where: str, scales: Scales) -> Scales:
    """Return scales ``(low, high)`` with 0 < low <= high as floats.

    Raises: TypeError if they are no pair of numbers; ValueError if they are out of order or not positive.
    """
    try:
        low, high = (float(s) for s in scales)
    except (TypeError, ValueError) as err:
        raise TypeError(f"{where}: scales must be a pair of numbers (low, high), got {scales!r}") from err
    if not 0 < low <= high:
        raise ValueError(f"{where}: scales are ({low:g}, {high:g}), expected 0 < low <= high")
    return low, high


def event_or_none(where: str, shape: Sequence[int] | None) -> Event | None:
    """Return an image shape (C, H, W), or None for any.

    Raises: ValueError if it has not three entries of one or more.
    """
    if shape is None:
        return None
    event = tuple(shape)
    if len(event) != EVENT_DIMS:
        raise ValueError(f"{where}: shape is {shape_text(event)}, expected (C, H, W)")
    for n in event:
        count(where, "an entry of shape", n)
    return event


def broadcasts(where: str, what: str, t: Tensor, event: Event) -> None:
    """Refuse a tensor that does not broadcast to an image shape.

    Raises: ValueError with both shapes.
    """
    fits = t.dim() <= len(event) and all(n in (1, m) for n, m in zip(t.shape[::-1], event[::-1], strict=False))
    if not fits:
        raise ValueError(
            f"{where}: {what} has shape {shape_text(tuple(t.shape))}, expected to broadcast to {shape_text(event)}"
        )


def single_sigma(energy: Energy, sigma: Sigma) -> float | None:
    """The scale as a number, or None for one scale per batch entry, which no single quadratic form serves.

    Raises: ValueError for a scale outside of the energy's.
    """
    if isinstance(sigma, Tensor) and sigma.dim() > 0:
        return None
    return float(energy.sigma_of(torch.empty(1, 1, 1, dtype=torch.float64), sigma))


def refuse_singular(where: str, what: str, s: float | Tensor) -> None:
    """Refuse scale zero, at which a degenerate Gaussian has no density.

    Raises: ValueError that names what is zero.
    """
    if bool((s == 0).any()) if isinstance(s, Tensor) else s == 0:
        raise ValueError(f"{where}: {what} has zero variances, thus no density at sigma = 0; expected sigma > 0")


def flatten_batch(x: Tensor) -> Tensor:
    """(*batch, C, H, W) -> (N, C, H, W)."""
    return x.reshape(-1, *x.shape[-EVENT_DIMS:])


def sigma_per_image(x: Tensor, s: float | Tensor) -> Tensor:
    """A scale as ``Energy.sigma_of`` gives it, as one number an image.

    Shapes: x (*batch, C, H, W); s a number or (*batch, 1, 1, 1); returns (N,), in x's real dtype.
    """
    images = x.shape[:-EVENT_DIMS].numel()
    flat = torch.as_tensor(s, dtype=x.real.dtype, device=x.device).reshape(-1)
    return flat.expand(images)


def optional(module: str, extra: str, where: str) -> Any:
    """Import an optional dependency.

    Raises: ImportError that says which extra to install.
    """
    try:
        return importlib.import_module(module)
    except ImportError as err:
        raise ImportError(f"{where} needs {module.split('.')[0]}: pip install 'potentia[{extra}]'") from err
