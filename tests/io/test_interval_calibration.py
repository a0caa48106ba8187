"""Intervals from few samples hold the share of new draws that they say."""

import math

import pytest
import torch

from potentia.io import EnsembleWriter


@pytest.mark.parametrize(("n", "level", "expected"), [(39, 0.9, 0.9), (19, 0.9, 0.9), (99, 0.5, 0.5), (9, 0.9, 0.8)])
def test_an_interval_holds_its_level_of_one_more_draw(n: int, level: float, expected: float) -> None:
    """n samples and the truth are exchangeable: k / (n + 1) of the truths lie below the k-th sample."""
    side = 60
    g = torch.Generator().manual_seed(n)
    writer = EnsembleWriter.create(None, num_chains=n, num_draws=1, event_shape=(1, side, side))
    writer.append(torch.randn(n, 1, side, side, generator=g), {"lp": 0.0})
    writer.commit()
    covered = writer.close().coverage(torch.randn(1, side, side, generator=g), level)
    error = math.sqrt(expected * (1 - expected)) / side
    assert abs(covered - expected) < 5 * error
