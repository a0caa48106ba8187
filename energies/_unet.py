"""A compact U-Net that is told the noise scale."""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from potentia._validate import count

GROUP_WIDTH = 8  # channels that are normalised together
_Layer = TypeVar("_Layer", nn.Conv2d, nn.Linear)
FREQUENCIES = 16  # of the features of c_noise, from 1/4 to 8 cycles a unit


class UNet(nn.Module):
    """A U-Net F(x, c_noise), fully convolutional, with smooth activations throughout.

    One residual block or more a level, group normalisation scaled and shifted by features of ``c_noise``, averaging
    on the way down, nearest neighbours on the way up. It has derivatives of every order, so that the gradient of an
    energy made of it can be trained. Images of any size go in; sizes that the levels do not divide are continued by
    their borders, and cut back.

    ``widths`` are the channels a level, multiples of eight; ``blocks`` the residual blocks a level and direction;
    ``attention`` the heads of one self-attention at the coarsest level, 0 for none; ``patch`` the side of the squares
    that are folded into channels first, 1 for none, which makes large images cheaper.

    Shapes: x (N, channels_in, H, W), c_noise (N,); returns (N, channels_out, H, W).
    Raises: ValueError for counts below one or widths that are not multiples of eight.
    Source: Ronneberger et al. 2015; Ho et al. 2020; Karras et al. 2022.
    """

    def __init__(
        self,
        channels_in: int,
        channels_out: int | None = None,
        *,
        widths: Sequence[int] = (48, 96, 128),
        blocks: int = 1,
        attention: int = 0,
        embedding: int = 128,
        patch: int = 1,
    ) -> None:
        super().__init__()
        channels_out = channels_in if channels_out is None else channels_out
        checked = {"channels_in": channels_in, "channels_out": channels_out, "blocks": blocks, "patch": patch}
        for what, n in (*checked.items(), ("embedding", embedding)):
            count("UNet", what, n)
        count("UNet", "attention", attention, least=0)
        if not widths or any(count("UNet", "a width", w) % GROUP_WIDTH for w in widths):
            raise ValueError(f"UNet: widths are {list(widths)}, expected multiples of {GROUP_WIDTH}, one a level")
        if attention and widths[-1] % attention:
            raise ValueError(f"UNet: {attention} heads do not divide the coarsest width, {widths[-1]}")
        self.settings = {
            "channels_in": channels_in,
            "channels_out": channels_out,
            "widths": list(widths),
            "blocks": blocks,
            "attention": attention,
            "embedding": embedding,
            "patch": patch,
        }
        self.patch = patch
        self.stride = patch * 2 ** (len(widths) - 1)
        self.embed = _Embedding(embedding)
        self.first = nn.Conv2d(channels_in * patch**2, widths[0], 3, padding=1)
        self.down = nn.ModuleList(
            _level(before, width, blocks, embedding) for before, width in pairwise((widths[0], *widths))
        )
        self.middle = _Attention(widths[-1], attention) if attention else nn.Identity()
        self.up = nn.ModuleList(
            _level(below + width, width, blocks, embedding) for below, width in pairwise(reversed(widths))
        )
        self.norm = _norm(widths[0])
        self.last = _zero(nn.Conv2d(widths[0], channels_out * patch**2, 3, padding=1))

    def forward(self, x: Tensor, c_noise: Tensor) -> Tensor:
        height, width = x.shape[-2:]
        below, right = -height % self.stride, -width % self.stride
        if below or right:
            x = F.pad(x, (0, right, 0, below), mode="replicate")
        if self.patch > 1:
            x = F.pixel_unshuffle(x, self.patch)
        e = self.embed(c_noise)
        h: Tensor = self.first(x)
        kept: list[Tensor] = []
        for level, stages in enumerate(self.down):
            if level:
                kept.append(h)
                h = F.avg_pool2d(h, 2)
            for block in stages:  # type: ignore[attr-defined]
                h = block(h, e)
        h = self.middle(h)
        for stages in self.up:
            h = torch.cat([F.interpolate(h, scale_factor=2, mode="nearest"), kept.pop()], dim=1)
            for block in stages:  # type: ignore[attr-defined]
                h = block(h, e)
        h = self.last(F.silu(self.norm(h)))
        if self.patch > 1:
            h = F.pixel_shuffle(h, self.patch)
        return h[..., :height, :width]


class _Block(nn.Module):
    """Normalise, activate, convolve, twice, beside a direct way."""

    def __init__(self, before: int, width: int, embedding: int) -> None:
        super().__init__()
        self.norm1 = _norm(before)
        self.conv1 = nn.Conv2d(before, width, 3, padding=1)
        self.film = _zero(nn.Linear(embedding, 2 * width))
        self.norm2 = _norm(width)
        self.conv2 = _zero(nn.Conv2d(width, width, 3, padding=1))
        self.direct = nn.Conv2d(before, width, 1) if before != width else nn.Identity()

    def forward(self, x: Tensor, e: Tensor) -> Tensor:
        h: Tensor = self.norm2(self.conv1(F.silu(self.norm1(x))))
        gain, offset = self.film(e)[:, :, None, None].chunk(2, dim=1)
        h = self.conv2(F.silu(h * (1 + gain) + offset))
        direct: Tensor = self.direct(x)
        return direct + h


class _Attention(nn.Module):
    """Self-attention over all pixels, written out: fused kernels have no second derivative."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = _norm(width)
        self.qkv = nn.Conv2d(width, 3 * width, 1)
        self.out = _zero(nn.Conv2d(width, width, 1))

    def forward(self, x: Tensor) -> Tensor:
        n, c, height, width = x.shape
        q, k, v = self.qkv(self.norm(x)).reshape(n * self.heads, 3, c // self.heads, height * width).unbind(1)
        weights = torch.softmax(q.transpose(1, 2) @ k / math.sqrt(c // self.heads), dim=-1)
        mixed = (v @ weights.transpose(1, 2)).reshape(n, c, height, width)
        out: Tensor = self.out(mixed)
        return x + out


class _Embedding(nn.Module):
    """Waves of c_noise, through two layers."""

    frequencies: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        self.register_buffer("frequencies", 2 * math.pi * torch.logspace(-2, 3, FREQUENCIES, base=2), persistent=False)
        self.inner = nn.Linear(2 * FREQUENCIES, width)
        self.outer = nn.Linear(width, width)

    def forward(self, c_noise: Tensor) -> Tensor:
        angles = c_noise[:, None] * self.frequencies
        waves = torch.cat([angles.cos(), angles.sin()], dim=1)
        out: Tensor = self.outer(F.silu(self.inner(waves)))
        return F.silu(out)


def _level(before: int, width: int, blocks: int, embedding: int) -> nn.ModuleList:
    return nn.ModuleList(_Block(before if k == 0 else width, width, embedding) for k in range(blocks))


def _norm(width: int) -> nn.GroupNorm:
    return nn.GroupNorm(width // GROUP_WIDTH, width)


def _zero(layer: _Layer) -> _Layer:
    """Start a layer at zero, so that a block starts as its direct way."""
    nn.init.zeros_(layer.weight)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer
