"""What a potential adds at each scale, so that its values compare across scales."""

import math

import torch
from torch import Tensor, nn

from potentia._validate import count, positive


class ScaleOffset(nn.Module):
    """A smooth function of log sigma, in nats an entry of an image: a Chebyshev series between two scales.

    It starts at log sigma, the offset of noise alone: the potential of N(0, s^2 I) is ||x||^2 / (2 s^2) + n log s, but
    for a constant.

    Shapes: sigma (N,); returns (N,).
    Raises: ValueError unless 0 < low < high and degree is one or more.
    """

    coefficients: Tensor

    def __init__(self, low: float, high: float, degree: int = 8) -> None:
        super().__init__()
        low, high = positive("ScaleOffset", "low", low), positive("ScaleOffset", "high", high)
        if high <= low:
            raise ValueError(f"ScaleOffset: high is {high:g}, expected above low, {low:g}")
        count("ScaleOffset", "degree", degree)
        self.settings = {"low": low, "high": high, "degree": degree}
        self.low, self.high = math.log(low), math.log(high)
        start = torch.zeros(degree + 1)
        start[0], start[1] = (self.low + self.high) / 2, (self.high - self.low) / 2
        self.coefficients = nn.Parameter(start)

    def forward(self, sigma: Tensor) -> Tensor:
        t = (2 * sigma.log() - self.low - self.high) / (self.high - self.low)
        terms = [torch.ones_like(t), t]
        for _ in range(len(self.coefficients) - 2):
            terms.append(2 * t * terms[-1] - terms[-2])
        return torch.stack(terms, dim=-1) @ self.coefficients.to(t.dtype)
