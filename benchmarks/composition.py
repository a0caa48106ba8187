"""What composing costs: a sum of five terms against the same formula written out by hand.

    python benchmarks/composition.py [--side 64 128 256 512] [--batch 16] [--repeats 41] [--device cpu]
        [--out benchmarks/results/composition] [--quick] [--draw]

The posterior is a Gaussian field, weighted total variation, independent Gaussian pixels, blurred data and masked data.
``value_and_grad`` of the sum is timed in turn with one function that does the same arithmetic term by term: no checks,
no dispatch, one sum updated in place. A third function also merges what algebra allows (both Fourier filters
become one, all pixelwise terms another): what a user would win by deriving the gradient anew, and no part of the
verdict. Times are the least of the rounds; the quartiles are those of the ratio pair by pair.
"""

import argparse
import math
import statistics
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from _record import about, parsed, parser, publish, redraw, seconds, sentence, table, verdict
from torch import Tensor

import potentia as pt
from potentia import energies, likelihoods

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SIGMA, WEIGHT, EPSILON, STD = 0.1, 3.0, 0.01, 0.7
BLUR_NOISE, MASK_NOISE = 0.1, 0.2
LIMIT, JUDGED_FROM = 1.05, 128
Evaluated = tuple[Tensor, Tensor]


def posterior(side: int, device: str) -> pt.Sum:
    """Five terms on images of (1, side, side)."""
    generator = torch.Generator().manual_seed(side)
    mask = (torch.rand(1, side, side, generator=generator) < 0.5).float()
    y = torch.randn(2, 1, side, side, generator=generator)
    total = sum(
        [
            energies.GaussianField.power_law((1, side, side), std=0.5),
            WEIGHT * energies.TotalVariation(EPSILON),
            energies.Gaussian(torch.zeros(1, side, side), STD),
            likelihoods.Gaussian(y[0], likelihoods.GaussianBlur(1.5, (side, side)), BLUR_NOISE),
            likelihoods.Gaussian(mask * y[1], likelihoods.Mask(mask), MASK_NOISE),
        ]
    )
    assert isinstance(total, pt.Sum)
    return total.to(device)


def filtered(x: Tensor, response: Tensor) -> Tensor:
    """Multiply the Fourier transform of real images by half a response."""
    return torch.fft.irfft2(torch.fft.rfft2(x) * response, s=x.shape[-2:])


def total(t: Tensor) -> Tensor:
    """Sum over an image, in the precision that the terms sum in."""
    return t.sum((-3, -2, -1), dtype=torch.float64)


def variation(x: Tensor) -> Evaluated:
    """Smoothed total variation and its gradient."""
    dx, dy = torch.diff(x, dim=-1, append=x[..., -1:]), torch.diff(x, dim=-2, append=x[..., -1:, :])
    squared = dx.square() + dy.square()
    magnitude = (squared + EPSILON**2).sqrt()
    value = total(squared / (magnitude + EPSILON))
    p, q = dx / magnitude, dy / magnitude
    return value, -(torch.diff(p, dim=-1, prepend=p[..., -1:]) + torch.diff(q, dim=-2, prepend=q[..., -1:, :]))


def by_hand(terms: pt.Sum) -> Callable[[Tensor], Evaluated]:
    """The five terms in one function, each with its own arithmetic."""
    field, _, pixels, blurred, masked = terms.terms.values()
    half = field.spectrum.shape[-1] // 2 + 1
    response, mask = blurred.operator.response, masked.operator.mask

    @torch.no_grad()
    def evaluate(x: Tensor) -> Evaluated:
        v = field.spectrum + SIGMA**2
        r = x - field.mean
        grad = filtered(r, (1.0 / v)[..., :half])
        value = 0.5 * total(r * grad) + 0.5 * total((2 * math.pi * v.double()).log())

        found, slope = variation(x)
        value += WEIGHT * found
        grad.add_(slope, alpha=WEIGHT)

        w = pixels.std.square() + SIGMA**2
        r = x - pixels.mean
        slope = r / w
        value += 0.5 * total(r * slope) + 0.5 * x[0].numel() * (2 * math.pi * w.double()).log()
        grad += slope

        r = filtered(x, response[..., :half]) - blurred.y
        slope = r * (1 / BLUR_NOISE**2)
        value += 0.5 * total(r * slope)
        grad += filtered(slope, response.conj()[..., :half])

        r = mask * x - masked.y
        slope = r * (1 / MASK_NOISE**2)
        value += 0.5 * total(r * slope)
        grad += mask * slope
        return value, grad

    return evaluate


def merged(terms: pt.Sum) -> Callable[[Tensor], Evaluated]:
    """The same formula after algebra: one Fourier filter, one pixelwise filter, one total variation."""
    field, _, pixels, blurred, masked = terms.terms.values()
    half = field.spectrum.shape[-1] // 2 + 1
    v, w = field.spectrum + SIGMA**2, pixels.std.square() + SIGMA**2
    response, mask = blurred.operator.response, masked.operator.mask
    spectral = (1 / v + response.abs().square() / BLUR_NOISE**2)[..., :half].contiguous()
    local = mask / MASK_NOISE**2 + 1 / w
    linear = filtered(blurred.y, response.conj()[..., :half]) / BLUR_NOISE**2 + mask * masked.y / MASK_NOISE**2
    constant = 0.5 * total((2 * math.pi * v.double()).log())
    constant = constant + 0.5 * v[0].numel() * (2 * math.pi * w.double()).log()
    constant = constant + 0.5 * total((blurred.y / BLUR_NOISE).square()) + 0.5 * total((masked.y / MASK_NOISE).square())

    @torch.no_grad()
    def evaluate(x: Tensor) -> Evaluated:
        grad = filtered(x, spectral).addcmul_(local, x)
        value = total(x * (0.5 * grad - linear)) + constant
        found, slope = variation(x)
        return value + WEIGHT * found, grad.sub_(linear).add_(slope, alpha=WEIGHT)

    return evaluate


def repeated(call: Callable[[], object], times: int) -> None:
    """Call it so often, and keep nothing: memory is used again, as in a sampler."""
    for _ in range(times):
        call()


def measure(side: int, options: argparse.Namespace) -> dict[str, Any]:
    """Milliseconds and ratios at one size; all three ways agree, or it fails.

    Raises: AssertionError where they do not.
    """
    terms = posterior(side, options.device)
    x = torch.randn(options.batch, 1, side, side, generator=torch.Generator().manual_seed(1)).to(options.device)
    hand, less = by_hand(terms), merged(terms)
    calls = {"sum": lambda: terms.value_and_grad(x, SIGMA), "by hand": lambda: hand(x), "merged": lambda: less(x)}
    value, grad = calls["sum"]()
    for call in calls.values():
        other = call()
        torch.testing.assert_close(other[0], value, rtol=1e-5, atol=1e-3)
        torch.testing.assert_close(other[1], grad, rtol=1e-3, atol=1e-3 * float(grad.abs().max()))
    once = max(seconds(calls["by hand"], options.device), 1e-4)
    inner = max(1, math.ceil(options.least / once))  # so that a round is long against the clock's tick
    rounds = []
    for _ in range(options.repeats + 1):
        spent = {}
        for name, call in calls.items():
            spent[name] = seconds(partial(repeated, call, inner), options.device) / inner
        rounds.append(spent)
    rounds = rounds[1:]
    least = {name: min(r[name] for r in rounds) for name in calls}
    return {
        "side": side,
        "milliseconds": {name: 1e3 * spent for name, spent in least.items()},
        "ratio": least["sum"] / least["by hand"],
        "quartiles": statistics.quantiles((r["sum"] / r["by hand"] for r in rounds), n=4)[::2],
        "merged": least["sum"] / least["merged"],
    }


def report(content: dict[str, Any]) -> str:
    head = ["side", "sum, ms", "by hand, ms", "merged, ms", "sum / by hand", "quartiles", "sum / merged", "verdict"]
    rows = []
    for r in content["rows"]:
        ms = r["milliseconds"]
        judged = verdict(r["ratio"], LIMIT) if r["side"] >= JUDGED_FROM else "not judged"
        quartiles = " to ".join(f"{q:.3f}" for q in r["quartiles"])
        numbers = (*(f"{ms[n]:.3f}" for n in ("sum", "by hand", "merged")), f"{r['ratio']:.3f}", quartiles)
        rows.append([str(r["side"]), *numbers, f"{r['merged']:.2f}", judged])
    lines = [
        "# Composition",
        "",
        sentence(content["about"]),
        "",
        f"Value and gradient of a sum of five terms on {content['settings']['batch']} images of SIDE x SIDE, against",
        "one function that does the same arithmetic. Merged: both Fourier filters in one and all pixelwise terms in",
        "another, which is another algorithm, and not judged. Least of the rounds, in CPU seconds (GPU: wall time);",
        "the quartiles are of the ratio pair by pair.",
        "",
        *table(head, rows),
    ]
    return "\n".join(lines)


def figure(content: dict[str, Any]) -> "Figure":
    from matplotlib.figure import Figure

    made = Figure(figsize=(5.5, 3.6), layout="constrained")
    axis = made.subplots()
    sides = [r["side"] for r in content["rows"]]
    for name in ("sum", "by hand", "merged"):
        axis.loglog(sides, [r["milliseconds"][name] for r in content["rows"]], marker="o", label=name)
    axis.set(xlabel="side, pixels", ylabel="value and gradient, ms", xticks=sides, xticklabels=map(str, sides))
    axis.legend()
    return made


def main(arguments: Sequence[str] | None = None) -> None:
    made = parser(__doc__, "composition")
    made.add_argument("--side", type=int, nargs="+", default=[64, 128, 256, 512])
    made.add_argument("--batch", type=int, default=16)
    made.add_argument("--repeats", type=int, default=41)
    options = parsed(made, arguments)
    if options.draw:
        print(redraw(options.out, report, figure))
        return
    options.least = 0.05
    if options.quick:
        options.side, options.repeats, options.least = [16, 32], 3, 0.002
    settings = {"batch": options.batch, "repeats": options.repeats}
    content = {"about": about(options.device), "settings": settings, "rows": []}
    for side in options.side:
        content["rows"].append(measure(side, options))
        text = publish(options.out, content, report, figure)
    print(text)


if __name__ == "__main__":
    main()
