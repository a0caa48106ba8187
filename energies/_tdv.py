"""The total deep variation."""

import math
import pickle
import zipfile
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import ClassVar, NamedTuple, Self, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d, conv_transpose2d, pad

from potentia._potential import Energy, Scales, Sigma
from potentia._random import standard_normal
from potentia._tensor import sum_event
from potentia._validate import count, real_number, shape_text
from potentia.energies._lean import lean
from potentia.energies._shared import flatten_batch

_BINOMIAL = (1.0, 4.0, 6.0, 4.0, 1.0)


class Flow(NamedTuple):
    """The gradient flow that a network was trained in, as a denoiser of images in [0, 1].

    From the noisy image z, ``steps`` times: x <- (x - time / steps grad R(x) + fidelity / steps z) / (1 + fidelity /
    steps). Its fixed points minimise R + fidelity / (2 time) ||x - z||^2.
    """

    time: float
    fidelity: float
    steps: int


class TotalDeepVariation(Energy):
    """The total deep variation, a learned regulariser: a convolutional network whose output is summed.

    U(x) = 1/m sum over pixels of w' N(K u), u = x brought from ``image_range`` to [0, 1], where K are m filters of
    3 x 3 without a constant part, w weighs m features, and N is a chain of small U-Nets ("blocks") of residual layers
    x + K2 phi(K1 x), phi(t) = log(1 + t^2) / 2, with blurred strides between their ``levels``. Edges are mirrored.

    It was learned at one noise level, for the published weights a std of 25/255 in [0, 1], and has one form for all:
    it has no ``scales`` and ignores sigma, as total variation does, so that it joins posteriors whose other terms are
    annealed. Scales (s, s) would promise a Tweedie denoiser, which it is not, and have every annealed sampler refused.
    U grows linearly at most and may fall without bound: a posterior needs data on every pixel.

    ``load`` reads published weights; ``weights`` is a mapping as they hold, under the names of ``network``;
    ``random`` makes some. ``flow`` says how loaded weights were trained, None if unknown. Weights start without
    requiring gradients; ``requires_grad_()`` makes them trainable.

    Shapes: x (*batch, C, H, W), real, C as the weights have it, H and W at least 2^(levels - 1) + 1; returns (*batch,).
    Units: image_range in the image's unit. U is in nats, up to a weight, as total variation's: in its training that
        weight was ``flow.time / (flow.fidelity * s**2)``, s the noise std in [0, 1]; 8.26 for the published grey one.
    Raises: ValueError if weights do not form such a network or an image is too small; load: one ValueError for files
        that are damaged or of another kind.
    Source: Kobler, Effland, Kunisch and Pock 2020, section 3.1; details of kernels and edges as in VLOGroup/tdv (MIT).
    """

    default_name: ClassVar[str] = "tdv"
    network: "DeepVariation"

    def __init__(
        self,
        weights: Mapping[str, Tensor],
        *,
        image_range: Scales = (-1.0, 1.0),
        flow: Flow | None = None,
    ) -> None:
        super().__init__()
        self.network = DeepVariation.of(self.name, weights)
        low, high = (real_number(self.name, "image_range", v) for v in image_range)
        if not low < high:
            raise ValueError(f"{self.name}: image_range is ({low:g}, {high:g}), expected low < high")
        self.image_range = (low, high)
        self.flow = flow

    @classmethod
    def load(cls, path: str | Path, *, image_range: Scales = (-1.0, 1.0)) -> Self:
        """Load weights as the authors' ``tdv3-3-25-f32-gray.pth`` holds them; no code of the file is run.

        Raises: FileNotFoundError; ValueError for a damaged file and for one that holds another network.
        """
        model, flow = _read(path)
        weights = {k.removeprefix("R."): v for k, v in model.items() if k.startswith("R.")}
        try:
            return cls(weights, image_range=image_range, flow=flow)
        except ValueError as err:
            raise ValueError(f"{path}: no total deep variation: {err}") from err

    @classmethod
    def random(
        cls,
        generator: torch.Generator,
        channels: int = 1,
        features: int = 32,
        *,
        levels: int = 3,
        blocks: int = 3,
        multiplier: int = 1,
        image_range: Scales = (-1.0, 1.0),
        dtype: torch.dtype = torch.float32,
    ) -> Self:
        """Random weights, as training starts from."""
        network = DeepVariation(channels, features, levels, blocks, multiplier)
        weights = {}
        for name, p in network.named_parameters():
            w = standard_normal(p.shape, generator, dtype=dtype) / math.sqrt(p[0].numel())
            if name == "K1.weight":
                w = w - w.mean((1, 2, 3), keepdim=True)
                w = w / w.square().sum((1, 2, 3), keepdim=True).sqrt()
            weights[name] = w
        return cls(weights, image_range=image_range)

    @property
    def is_complex(self) -> bool:
        return False

    def extra_repr(self) -> str:
        return f"{self.network.extra_repr()}, image_range=({self.image_range[0]:g}, {self.image_range[1]:g})"

    def check(self, x: Tensor) -> None:
        super().check(x)
        channels, least = self.network.channels, self.network.least
        if x.shape[-3] != channels or min(x.shape[-2:]) < least:
            got = shape_text(tuple(x.shape))
            raise ValueError(
                f"{self.name}: x has shape {got}, expected (*batch, {channels}, H, W) with H and W at least {least}"
            )

    def forward(self, x: Tensor, sigma: Sigma = None) -> Tensor:
        self.check(x)
        # In the precision of the weights, as networks are everywhere here; summed in double precision.
        u = flatten_batch(x).to(self.network.dtype)
        low, high = self.image_range
        density = self.network((u - low) / (high - low))
        return sum_event(density).reshape(x.shape[:-3])

    def value_and_grad(self, x: Tensor, sigma: Sigma = None) -> tuple[Tensor, Tensor]:
        with lean(self.network):
            return super().value_and_grad(x, sigma)


class DeepVariation(nn.Module):
    """The network of a total deep variation: an image to its density of energy.

    Shapes: (N, channels, H, W) -> (N, 1, H, W).
    """

    def __init__(self, channels: int, features: int, levels: int, blocks: int, multiplier: int = 1) -> None:
        super().__init__()
        where = "tdv"
        self.channels, self.features = count(where, "channels", channels), count(where, "features", features)
        self.levels, self.blocks = count(where, "levels", levels, 2), count(where, "blocks", blocks)
        self.multiplier = count(where, "multiplier", multiplier)
        # The names are those of the published weights.
        self.K1 = Filters(channels, features)
        self.mb = nn.ModuleList(Block(features, levels, multiplier) for _ in range(blocks))
        self.KN = Filters(features, 1, size=1)

    @classmethod
    def of(cls, where: str, weights: Mapping[str, Tensor]) -> Self:
        """The network that weights belong to, its sizes read off their names and shapes.

        Raises: ValueError that says which weight does not fit.
        """
        try:
            features, channels = weights["K1.weight"].shape[:2]
            blocks = len({k.split(".")[1] for k in weights if k.startswith("mb.")})
            levels = 1 + sum(k.startswith("mb.0.conv_down.") and k.endswith(".weight") for k in weights)
            multiplier = weights["mb.0.conv_down.0.weight"].shape[0] // features
            network = cls(channels, features, levels, blocks, multiplier)
        except (KeyError, IndexError, ValueError, AttributeError, TypeError) as err:
            raise ValueError(f"{where}: weights have no K1, mb.0.conv_down.0 and so on of a network: {err}") from err
        network._fill(where, weights)
        return network.requires_grad_(False)

    @property
    def dtype(self) -> torch.dtype:
        """The precision of the weights."""
        return self.K1.weight.dtype

    @property
    def least(self) -> int:
        """Least height and width: the last stride mirrors three pixels at each edge."""
        return int(2 ** (self.levels - 1)) + 1

    def forward(self, u: Tensor) -> Tensor:
        """1/m w' N(K u)."""
        features = [self.K1(u)]
        for block in self.mb:
            features = block(features)
        out: Tensor = self.KN(features[0])
        return out / self.features

    def extra_repr(self) -> str:
        return f"{self.blocks} blocks of {self.levels} levels, {self.features} features"

    def _fill(self, where: str, weights: Mapping[str, Tensor]) -> None:
        """Take the weights; what is no weight must be a constant of the published networks."""
        mine = dict(self.named_parameters())
        for name in mine.keys() - weights.keys():
            raise ValueError(f"{where}: weight {name} is missing")
        for name, given in weights.items():
            if not isinstance(given, Tensor) or not given.is_floating_point() or not bool(given.isfinite().all()):
                raise ValueError(f"{where}: weight {name} is no finite real tensor")
            if name not in mine:
                _check_constant(where, name, given)
            elif given.shape != mine[name].shape:
                got, want = shape_text(tuple(given.shape)), shape_text(tuple(mine[name].shape))
                raise ValueError(f"{where}: weight {name} has shape {got}, expected {want}")
            else:
                mine[name].data = given.detach().clone()


class Filters(nn.Module):
    """Filters with mirrored edges: correlation, and its transpose.

    With ``stride`` 2 the filters are blurred by the binomial kernel of five taps, against aliasing.

    Shapes: (N, incoming, H, W) -> (N, outgoing, H, W), or half of that, rounded up; ``transpose`` the way back.
    """

    def __init__(self, incoming: int, outgoing: int, *, size: int = 3, stride: int = 1) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(outgoing, incoming, size, size))
        self.stride = stride

    def kernel(self) -> Tensor:
        """The filters as they are applied."""
        w = self.weight
        if self.stride == 1:
            return w
        taps = w.new_tensor(_BINOMIAL) / sum(_BINOMIAL)
        blur = torch.outer(taps, taps)[None, None]
        wide = conv2d(w.reshape(-1, 1, *w.shape[-2:]), blur, padding=4)
        return wide.reshape(*w.shape[:2], *wide.shape[-2:])

    def forward(self, x: Tensor) -> Tensor:
        k = self.kernel()
        step = [self.stride, self.stride]
        # Arguments as `lean` looks for them.
        return torch.conv2d(mirrored_edges(x, k.shape[-1] // 2), k, None, step, [0, 0], [1, 1], 1)

    def transpose(self, x: Tensor, like: Tensor) -> Tensor:
        """The transpose of ``forward`` on images as large as ``like``."""
        k = self.kernel()
        more = [n - ((m - 1) * self.stride + 1) for n, m in zip(like.shape[-2:], x.shape[-2:], strict=True)]
        spread = conv_transpose2d(x, k, stride=self.stride, output_padding=more)
        return folded_edges(spread, k.shape[-1] // 2)


class Layer(nn.Module):
    """x + K2 phi(K1 x), with phi(t) = log(1 + t^2) / 2."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.conv1, self.conv2 = Filters(features, features), Filters(features, features)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.conv2(0.5 * self.conv1(x).square().log1p())
        return x + out


class Block(nn.Module):
    """A U-Net whose levels hand their features on to the next block's.

    Shapes: a list of (N, features_l, H_l, W_l), only the finest in the first block -> a list of all of them.
    """

    def __init__(self, features: int, levels: int, multiplier: int) -> None:
        super().__init__()
        widths = [features * multiplier**level for level in range(levels)]
        # Two layers a level, one on the way down and one on the way up; the coarsest has one.
        depths = [2] * (levels - 1) + [1]
        self.mb = nn.ModuleList(
            nn.ModuleList(Layer(width) for _ in range(depth)) for width, depth in zip(widths, depths, strict=True)
        )
        self.conv_down = nn.ModuleList(Filters(fine, coarse, stride=2) for fine, coarse in pairwise(widths))
        self.conv_up = nn.ModuleList(Filters(fine, coarse, stride=2) for fine, coarse in pairwise(widths))

    def forward(self, features: list[Tensor]) -> list[Tensor]:
        out: list[Tensor] = []
        for k in range(len(self.mb)):
            parts = features[k : k + 1]
            if k > 0:
                parts.append(self.conv_down[k - 1](out[-1]))
            out.append(self._layer(k, 0)(sum(parts[1:], start=parts[0])))
        for k in reversed(range(len(out) - 1)):
            up = cast("Filters", self.conv_up[k]).transpose(out[k + 1], out[k])
            out[k] = self._layer(k, 1)(out[k] + up)
        return out

    def _layer(self, level: int, way: int) -> nn.Module:
        return cast("nn.ModuleList", self.mb[level])[way]


def mirrored_edges(x: Tensor, width: int) -> Tensor:
    """Extend images by their mirror image, the edge itself included: (..., H, W) -> (..., H + 2 width, W + 2 width)."""
    for dim in (-1, -2) if width else ():
        n = x.shape[dim]
        before, after = x.narrow(dim, 0, width).flip(dim), x.narrow(dim, n - width, width).flip(dim)
        x = torch.cat([before, x, after], dim)
    return x


def folded_edges(x: Tensor, width: int) -> Tensor:
    """The transpose of :func:`mirrored_edges`: what lies beyond the edges is added to what it mirrors."""
    for dim in (-1, -2) if width else ():
        n = x.shape[dim] - 2 * width
        room = (0, n - width) if dim == -1 else (0, 0, 0, n - width)
        before = pad(x.narrow(dim, 0, width).flip(dim), room)
        after = pad(x.narrow(dim, n + width, width).flip(dim), room[:-2] + room[-1:] + room[-2:-1])
        x = x.narrow(dim, width, n) + before + after
    return x


def _check_constant(where: str, name: str, given: Tensor) -> None:
    """Accept the constants that are stored with published weights, if they are the ones assumed here."""
    taps = torch.tensor(_BINOMIAL, dtype=torch.float64)
    known = {"blur": torch.outer(taps, taps) / taps.sum() ** 2, "mask": torch.ones(1, dtype=torch.float64)}
    kind = name.rpartition(".")[2]
    if kind not in known:
        raise ValueError(f"{where}: weight {name} has no place in the network")
    fits = kind == "mask" or given.shape[-2:] == known[kind].shape
    if not fits or not torch.allclose(given.double().squeeze((0, 1)), known[kind], rtol=1e-5):
        raise ValueError(f"{where}: {name} is another constant than expected: filters of another kind")


def _read(path: str | Path) -> tuple[dict[str, Tensor], Flow | None]:
    """The weights in a file of torch, and how they were trained, as far as it says; tensors and containers only."""
    try:
        held = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise
    except (OSError, EOFError, RuntimeError, ValueError, KeyError, pickle.UnpicklingError, zipfile.BadZipFile) as err:
        raise ValueError(f"{path}: no file of weights that torch can read: {str(err).partition(chr(10))[0]}") from err
    model = held.get("model") if isinstance(held, dict) else None
    if not isinstance(model, dict) or not all(isinstance(k, str) for k in model):
        raise ValueError(f"{path}: no total deep variation, expected a dict with the weights under 'model'")
    config = held.get("config")
    if not {"T", "lmbda"} <= model.keys() or not isinstance(config, dict):
        return model, None
    try:
        return model, Flow(float(model["T"]), float(model["lmbda"]), int(config.get("S", 10)))
    except (TypeError, ValueError, RuntimeError) as err:
        raise ValueError(f"{path}: T, lmbda and S are no numbers: {err}") from err
