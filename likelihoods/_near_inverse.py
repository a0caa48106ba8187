"""Approximate inverses of normal operators S^H F^H diag(w) F S, to precondition conjugate gradients with.

A circulant matrix sees no more than the diagonal of the operator in k-space. Coil maps smear every sample over its
neighbours, and it is from these that the gaps between samples are filled: the inverses here keep the neighbours.
"""

import itertools
import math
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from potentia._structure import Fourier, NearInverse, Shift
from potentia._tensor import EVENT_DIMS
from potentia.likelihoods._linear_map import Map

Offset = tuple[int, int, int]
EASY = 10  # condition number below which conjugate gradients need no help: some 15 iterations
KEPT = 4  # factors, one a shift
CHUNK = 1 << 15  # points of k-space whose neighbourhoods are held at a time
# Squared reach of the neighbourhood, by the number of axes that are transformed.
REACH = {1: 64, 2: 10, 3: 2}
CUT_OFF = 2  # the same where maps end within the image, which smears entries over all of k-space: the far ones mislead
PLANE = (-2, -1)
ORIGIN: Offset = (0, 0, 0)


def reach_for(axes: Sequence[int], support: Tensor) -> int:
    """The largest squared length of offsets that helps, for maps that fill the image or that end within it."""
    most = REACH[len(axes)]
    return most if bool(support.all()) else min(most, CUT_OFF)


def neighbourhood(axes: Sequence[int], reach: int) -> list[Offset]:
    """Offsets from a point to those before it, in the order of their indices, the point itself last.

    ``reach`` is their largest squared length.
    """
    far = int(reach**0.5)
    ranges = [range(-far, far + 1) if axis in axes else (0,) for axis in (-3, -2, -1)]
    ball = [(a, b, c) for a, b, c in itertools.product(*ranges) if a * a + b * b + c * c <= reach]
    return sorted(p for p in ball if p <= ORIGIN)


def differences(points: Sequence[Offset]) -> list[Offset]:
    """Offsets from points of a neighbourhood to those that come later."""
    pairs = itertools.combinations_with_replacement(points, 2)
    return sorted({(q[0] - p[0], q[1] - p[1], q[2] - p[2]) for p, q in pairs})


def kspace_entries(
    maps: Tensor, spectrum: Tensor, axes: Sequence[int], offsets: Sequence[Offset]
) -> dict[Offset, Tensor]:
    """K[k, k + d] of K = F S^H F^H diag(spectrum) F S F^H for these offsets d, zero frequency first.

    Shapes: maps (coils, C, H, W), spectrum broadcasting against them -> (C, H, W) each.
    """
    axes = tuple(axes)
    s = torch.fft.fftn(maps, dim=axes, norm="forward")
    size = 1
    for axis in axes:
        size *= maps.shape[axis]
    full = [maps.shape[axis] if axis in axes else spectrum.shape[axis] for axis in (-3, -2, -1)]
    m = torch.fft.fftn(spectrum.expand(-1, *full), dim=axes)
    entries = {}
    for d in offsets:
        lag = s.conj() * s.roll(d, (-3, -2, -1))
        lag = lag.sum(0, keepdim=True) if m.shape[0] == 1 else lag
        products = m * torch.fft.ifftn(lag, dim=axes)
        entries[d] = torch.fft.ifftn(products.sum(0), dim=axes) * size
    return entries


def _moved(flat: Tensor, by: Offset, shape: Sequence[int]) -> Tensor:
    """Indices of the points that lie at an offset, around the edges."""
    c, h, w = shape
    z, y, x = flat // (h * w) + by[0], flat // w % h + by[1], flat % w + by[2]
    return (z % c * h + y % h) * w + x % w


def check_top(top: float) -> None:
    """Refuse what precision cannot hold: rounding would be mended for ever.

    Raises: ValueError for an eigenvalue or entry that is not finite.
    """
    if not math.isfinite(top):
        raise ValueError(
            f"normal operator: its entries reach {top}, expected coil maps and noise in a unit nearer to one"
        )


def where_hard(
    make: Callable[[], "LineInverse | LocalInverse"],
    top: float,
    beside: Callable[[], "FieldInverse"] | None = None,
) -> NearInverse:
    """Inverses made when they are first needed; where Λ + shift I is well conditioned as it is, the identity instead.

    ``top`` is about the largest eigenvalue of Λ; ``beside`` makes the inverse for a sum with a Fourier precision. Each
    batch entry is judged by its own shift.

    Raises: ValueError for a top that is not finite.
    """
    check_top(top)
    made: list[LineInverse | LocalInverse] = []
    fields: list[FieldInverse] = []

    def inverse(shift: Shift, spectrum: Tensor | None = None) -> Map | None:
        if spectrum is not None:
            if beside is not None and not fields:
                fields.append(beside())
            return fields[0](shift, spectrum) if fields else None
        easy = torch.as_tensor(shift) * EASY > top
        if bool(easy.all()):
            return lambda v: v
        if not made:
            made.append(make())
        near = made[0](shift)
        if near is None or not bool(easy.any()):
            return near
        return lambda v: torch.where(easy, v, near(v))

    return inverse


def varies(shift: Shift) -> bool:
    """Whether a shift is not one number, nor one a batch entry, but varies over the image."""
    return isinstance(shift, Tensor) and any(n != 1 for n in shift.shape[-EVENT_DIMS:])


class LineInverse:
    """The inverse where one axis alone is transformed, from the eigenvectors of every line along that axis.

    Without a second axis to mix the lines, Λ is block diagonal, one block a line. Exact but for rounding, at any shift.
    The eigenvectors, found once, take as long as some thousand applications of Λ to one image.

    Shapes: maps (coils, C, H, W); spectrum (coils or 1, C or 1, H or 1, W or 1), zero frequency first, varying along
        ``axis``, -2 or -1; ``real`` for real images; called with a shift, as ``NearInverse`` in ``_structure``.
    """

    def __init__(self, maps: Tensor, spectrum: Tensor, axis: int, *, real: bool) -> None:
        self.axis = axis
        s, kernel = maps.movedim(axis, -1), torch.fft.ifft(spectrum.movedim(axis, -1))
        n = s.shape[-1]
        place = torch.arange(n, device=maps.device)
        circulant = kernel[..., (place[:, None] - place) % n]
        blocks = torch.zeros((), dtype=s.dtype, device=s.device)
        for c in range(kernel.shape[0]):
            group = s if kernel.shape[0] == 1 else s[c : c + 1]
            blocks = blocks + torch.einsum("cabi,cabj->abij", group.conj(), group) * circulant[c]
        values, self.vectors = torch.linalg.eigh(blocks.real if real else blocks)
        self.values = values.clamp_min(torch.finfo(values.dtype).eps * float(values.max()))

    @staticmethod
    def entries(maps: Tensor, axis: int) -> int:
        """How many numbers the eigenvectors have."""
        return maps[0].numel() * maps.shape[axis]

    def __call__(self, shift: Shift) -> Map | None:
        return None if varies(shift) else lambda v: self._solve(v, shift)

    def _solve(self, v: Tensor, shift: Shift) -> Tensor:
        flat = v.reshape(-1, *v.shape[-EVENT_DIMS:])
        lines = flat.to(self.vectors.dtype).movedim(self.axis, -1).permute(1, 2, 3, 0)
        # Lines alone as one column a batch entry: the eigenvectors are read once for all.
        # V^H v as conj(V^T conj(v)): a conjugate copy of the eigenvectors would take longer than the product.
        along: Tensor = (self.vectors.mT @ lines.conj().contiguous().resolve_conj()).conj()
        each = shift.expand(*v.shape[:-EVENT_DIMS], 1, 1, 1).flatten() if isinstance(shift, Tensor) else shift
        along = along / (self.values[..., None] + each).to(along.real.dtype)
        out: Tensor = (self.vectors @ along).permute(3, 0, 1, 2).movedim(-1, self.axis)
        return out.to(v.dtype).reshape(v.shape)


def _cholesky(a: Tensor, shift: float, top: float) -> Tensor:
    """Lower factors of the matrices a + shift I, with as much more on the diagonal as rounding needs.

    ``top`` is the size of what has been rounded.
    """
    limits = torch.finfo(a.dtype)
    more = max(10 * limits.eps * top, limits.tiny)
    while True:
        shifted = a.clone()
        shifted.diagonal(dim1=-2, dim2=-1).add_(shift + more)
        factor, failed = torch.linalg.cholesky_ex(shifted)
        if not bool(failed.any()):
            lower: Tensor = factor
            return lower
        more *= 10


class LocalInverse:
    """Factorised sparse approximate inverse in k-space: L^H L with rows of L that reach over a few neighbours.

    For every point of k-space, the row of L is the last row of the inverse Cholesky factor of K = F (Λ + shift I) F^H
    restricted to the points before it in its neighbourhood: of all L of that pattern the one with L K L^H of unit
    diagonal nearest to I. Where coil maps vanish, Λ does, and 1/shift is its exact inverse; the entries of K, which
    such pixels have diluted, are scaled up by the share of the others.

    Shapes: points as ``neighbourhood`` gives them; entries by offset d, for their ``differences``: K[k, k + d] without
        the shift, (C, H, W), zero frequency first; support (C, H, W), True where coil maps do not vanish; axes those
        transformed, of -3, -2, -1; ``real`` for real images.
    Source: Kolotilina and Yeremin 1993 (factorised sparse approximate inverses).
    """

    def __init__(
        self,
        points: Sequence[Offset],
        entries: Mapping[Offset, Tensor],
        support: Tensor,
        axes: Sequence[int],
        *,
        real: bool,
    ) -> None:
        self._factors: dict[float, Tensor] = {}
        share = support.to(entries[ORIGIN].real.dtype).mean(dim=tuple(axes), keepdim=True).clamp_min(1e-3)
        self.entries = {d: (e / share).expand(support.shape).contiguous() for d, e in entries.items()}
        self.top = float(self.entries[ORIGIN].abs().max())
        check_top(self.top)
        self.points = points
        self.support = support
        self.everywhere = bool(support.all())
        self.axes = tuple(axes)
        self.real = real

    def __call__(self, shift: Shift, spectrum: Tensor | None = None) -> Map | None:
        if varies(shift) or spectrum is not None:
            return None
        values = shift.flatten().tolist() if isinstance(shift, Tensor) else [float(shift)]
        if not self.everywhere and min(values) <= 0:
            return None
        factors = {s: self._factor(s) for s in dict.fromkeys(values)}

        def inverse(v: Tensor) -> Tensor:
            flat = v.reshape(-1, *v.shape[-EVENT_DIMS:])
            each = torch.as_tensor(shift, dtype=torch.float64, device=v.device)
            each = each.expand(*v.shape[:-EVENT_DIMS], 1, 1, 1).flatten()
            out = torch.empty_like(flat)
            for s, factor in factors.items():
                chosen = each == s
                out[chosen] = self.solve(flat[chosen], factor, s).to(v.dtype)
            return out.reshape(v.shape)

        return inverse

    def _factor(self, shift: float) -> Tensor:
        if shift not in self._factors:
            if len(self._factors) >= KEPT:
                del self._factors[next(iter(self._factors))]
            self._factors[shift] = self.factor(shift)
        return self._factors[shift]

    def factor(self, shift: float) -> Tensor:
        """The rows of L by neighbour: (neighbours, C, H, W)."""
        shape = tuple(self.support.shape)
        size, n = self.support.numel(), len(self.points)
        device = self.support.device
        unit = torch.zeros(n, 1, dtype=self.entries[ORIGIN].dtype.to_complex(), device=device)
        unit[-1] = 1
        rows = torch.empty(n, size, dtype=unit.dtype, device=device)
        for start in range(0, size, CHUNK):
            flat = torch.arange(start, min(start + CHUNK, size), device=device)
            local = torch.zeros(len(flat), n, n, dtype=unit.dtype, device=device)
            for i, p in enumerate(self.points):
                near = _moved(flat, p, shape)
                for j in range(i, n):
                    q = self.points[j]
                    value = self.entries[(q[0] - p[0], q[1] - p[1], q[2] - p[2])].flatten()[near]
                    local[:, j, i] = value.conj()  # the lower half, which the factor is made of
            upper = _cholesky(local, shift, self.top).mH
            last = torch.linalg.solve_triangular(upper, unit.expand(len(flat), n, 1), upper=True)
            rows[:, flat] = last[..., 0].conj().T
        return rows.reshape(n, *shape)

    def solve(self, v: Tensor, factor: Tensor, shift: float) -> Tensor:
        """Apply F^H L^H L F within the support, 1 / shift outside: (N, C, H, W) -> the same."""
        inside = v if self.everywhere else self.support * v
        k = torch.fft.fftn(inside.to(factor.dtype), dim=self.axes)
        dims = (-3, -2, -1)
        w = torch.zeros_like(k)
        for p, row in zip(self.points, factor, strict=True):
            w.addcmul_(row, k.roll(tuple(-n for n in p), dims))
        k.zero_()
        for p, row in zip(self.points, factor, strict=True):
            k += (row.conj() * w).roll(p, dims)
        z = torch.fft.ifftn(k, dim=self.axes)
        z = z.real if self.real else z
        out: Tensor = z if self.everywhere else torch.where(self.support, z, v / shift)
        return out


class FieldInverse:
    """The inverse of Λ + F^H diag(spectrum) F + shift I: of a likelihood beside a stationary Gaussian prior.

    A local inverse takes the spectrum on its diagonal in k-space as it is. Where coil maps vanish, images are the
    prior's alone and softer by orders of magnitude than a diagonal that the pixels within have stiffened says: the
    prior's covariance among those pixels is added (additive Schwarz). Short neighbourhoods do best beside a prior.

    Shapes: as ``LocalInverse``, the axes those of the plane; spectrum real, broadcasting against (C, H, W).
    Source: Toselli and Widlund 2005, Domain decomposition methods, chapter 2.
    """

    def __init__(
        self, points: Sequence[Offset], entries: Mapping[Offset, Tensor], support: Tensor, *, real: bool
    ) -> None:
        self.points = points
        self.entries = entries
        self.outside = None if bool(support.all()) else ~support
        self.everywhere = torch.ones_like(support)
        self.real = real
        self._made: list[tuple[Tensor, LocalInverse]] = []

    def __call__(self, shift: Shift, spectrum: Tensor) -> Map | None:
        least = float(spectrum.min()) + (float(shift.min()) if isinstance(shift, Tensor) else shift)
        if varies(shift) or least <= 0:
            return None
        local = self._local(spectrum)(shift)
        outside, field = self.outside, Fourier(spectrum)
        if outside is None or local is None:
            return local
        return lambda v: local(v) + (outside * field.solve(outside * v, shift)).to(v.dtype)

    def _local(self, spectrum: Tensor) -> LocalInverse:
        """The local inverse of the sum, those of the last spectra kept."""
        for held, local in self._made:
            if held.shape == spectrum.shape and torch.equal(held, spectrum):
                return local
        origin = self.entries[ORIGIN]
        entries = {**self.entries, ORIGIN: origin + spectrum.to(origin.real.dtype)}
        local = LocalInverse(self.points, entries, self.everywhere, PLANE, real=self.real)
        self._made = [*self._made[1 - KEPT :], (spectrum, local)]
        return local
