"""Examples of operators of magnetic resonance imaging beyond a plane of Cartesian k-space."""

import importlib.util
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from potentia import likelihoods
from potentia.likelihoods import Operator

if TYPE_CHECKING:
    from potentia.testing.examples import Maker, Source


def _maps(source: "Source", *slices: int) -> Tensor:
    return source.normal(2, *slices, *source.plane, is_complex=True)


def _lines(source: "Source", axis: int) -> Tensor:
    """A mask that is constant along the other axis."""
    line = source.mask(source.plane[axis])
    return (line[:, None] if axis == -2 else line).expand(source.plane)


def _frames(source: "Source") -> Operator:
    return likelihoods.Sense(_maps(source, 1), source.mask(*source.shape))


def _volume(source: "Source", **options: bool) -> Operator:
    return likelihoods.Sense(_maps(source, source.shape[0]), source.mask(*source.shape), axes=3, **options)


def _truncated(source: "Source") -> Operator:
    maps = _maps(source)
    maps[..., : source.plane[-1] // 2] = 0
    return likelihoods.Sense(maps, source.mask(*source.plane))


def _simultaneous(source: "Source", **options: bool) -> Operator:
    slices = source.shape[0]
    phases = likelihoods.caipi_phases(slices, source.plane).to(source.dtype.to_complex())
    return likelihoods.SimultaneousSlices(_maps(source, slices), phases, source.mask(*source.plane), **options)


def _off_resonance(source: "Source", operator: Operator | None, *times: int) -> Operator | None:
    if operator is None:
        return None
    readout = 1e-3 * torch.linspace(0, 1, max(times), dtype=source.dtype).reshape(times)
    return likelihoods.OffResonance(operator, 200 * source.normal(*source.plane), readout, 3)


def _scattered(source: "Source", *, coils: bool) -> Operator | None:
    if importlib.util.find_spec("finufft") is None:
        return None
    # So few that the normal operator is singular, even with two coils: a solver without a shift would take for ever.
    k = torch.rand(5, 2, generator=source.generator, dtype=source.dtype) - 0.5
    return likelihoods.NonCartesian(k, source.plane, _maps(source) if coils else None)


OPERATORS: "dict[type, dict[str, Maker[Operator]]]" = {
    likelihoods.SimultaneousSlices: {
        "shifted": _simultaneous,
        "real images": lambda s: _simultaneous(s, real=True),
    },
    likelihoods.OffResonance: {
        "Cartesian": lambda s: _off_resonance(s, likelihoods.Sense(_maps(s), s.mask(*s.plane)), s.plane[-2], 1),
        "scattered": lambda s: _off_resonance(s, _scattered(s, coils=True), 5),
    },
    likelihoods.NonCartesian: {
        "channels": lambda s: _scattered(s, coils=False),
        "coils": lambda s: _scattered(s, coils=True),
    },
}
# Of classes that have examples already.
MORE_FOURIER: "dict[str, Maker[Operator]]" = {
    "frames": lambda s: likelihoods.Fourier(s.mask(*s.shape)),
    "volume": lambda s: likelihoods.Fourier(s.mask(*s.shape), axes=3),
    "volume, real images": lambda s: likelihoods.Fourier(s.mask(*s.shape), real=True, axes=3),
}
MORE_SENSE: "dict[str, Maker[Operator]]" = {
    "columns": lambda s: likelihoods.Sense(_maps(s), _lines(s, -1)),
    "rows": lambda s: likelihoods.Sense(_maps(s), _lines(s, -2)),
    "columns, real images": lambda s: likelihoods.Sense(_maps(s), _lines(s, -1), real=True),
    "a mask a coil": lambda s: likelihoods.Sense(_maps(s), s.mask(2, *s.plane)),
    "truncated maps": _truncated,
    "slices": lambda s: likelihoods.Sense(_maps(s, s.shape[0]), s.mask(*s.plane)),
    "frames": _frames,
    "volume": _volume,
    "volume, real images": lambda s: _volume(s, real=True),
}
