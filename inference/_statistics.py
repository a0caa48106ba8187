"""What calibration checks look at: numbers taken of images and of the posterior that they stand before."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from potentia._algebra import Sum
from potentia._potential import Potential
from potentia._tensor import squared_norm

Statistic = Callable[[Tensor, Potential], Tensor]
_PIXELS = 4
_GOLDEN = 0.6180339887  # multiples of it spread over rows and columns alike


def default_statistics(x: Tensor, posterior: Potential) -> dict[str, Statistic]:
    """Four pixels spread over the image, its mean, its squared norm, the posterior's potential and its likelihood's.

    The last two depend on the data: without such a statistic, a sampler that ignores the data and draws from the prior
    would pass. The potential is left out for score-only priors.

    Shapes: x (n, C, H, W).
    Source: Modrák, Moon, Kim, Bürkner, Huurre, Faltejsková, Gelman and Vehtari 2023.
    """
    shape = tuple(x.shape[1:])
    total = x[0].numel()
    places = sorted({int(total * ((0.5 + k * _GOLDEN) % 1)) for k in range(_PIXELS)})
    found: dict[str, Statistic] = {_name_of(p, shape): _pixel(p) for p in places}
    found["mean"] = lambda x, posterior: x.real.mean(dim=(-3, -2, -1))
    found["squared norm"] = lambda x, posterior: squared_norm(x)
    if posterior.has_value:
        found["potential"] = lambda x, posterior: posterior(x)
    if isinstance(posterior, Sum) and posterior.likelihood is not None:
        found["likelihood"] = _misfit
    return found


def _misfit(x: Tensor, posterior: Potential) -> Tensor:
    likelihood = posterior.likelihood if isinstance(posterior, Sum) else None
    if likelihood is None:
        raise ValueError("the statistic 'likelihood' needs a posterior with one, as that of the first replication has")
    value: Tensor = likelihood(x)
    return value


def _name_of(place: int, shape: tuple[int, ...]) -> str:
    row, x = divmod(place, shape[2])
    return "pixel ({}, {}, {})".format(*divmod(row, shape[1]), x)


def _pixel(place: int) -> Statistic:
    return lambda x, posterior: x.flatten(-3)[..., place].real


def evaluate(where: str, statistics: Mapping[str, Statistic], x: Tensor, posterior: Potential) -> Tensor:
    """Each statistic of each image, in double precision.

    Shapes: x (n, C, H, W) -> (statistics, n).
    Raises: ValueError for a statistic of another shape, or one that is NaN.
    """
    rows = []
    for name, of in statistics.items():
        with torch.no_grad():
            value = of(x, posterior)
        if tuple(value.shape) != (x.shape[0],) or value.is_complex():
            raise ValueError(
                f"{where}: statistic {name!r} has shape {tuple(value.shape)} and dtype {value.dtype}, expected a real "
                f"({x.shape[0]},), one number an image"
            )
        if bool(torch.isnan(value).any()):
            raise ValueError(f"{where}: statistic {name!r} is NaN for {int(torch.isnan(value).sum())} images")
        rows.append(value.double().cpu())
    return torch.stack(rows)
