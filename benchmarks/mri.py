"""Magnetic resonance imaging: the SENSE normal operator, its solver, and non-uniform transforms.

    python benchmarks/mri.py [--side 320 --coils 8 --repeats 15 --out benchmarks/results/mri]

1. Normal operator, of a batch of 1 and of 8 images, against bare ``torch.fft`` on the same arrays, as many transforms
   of the same size (one 2-D transform and one inverse a coil), and against the gradient A^H (A x - y) of deepinv's
   MultiCoilMRI where deepinv is installed; ours is then the gradient of ``likelihoods.Gaussian``. Timed in turn, over
   and over, in one process; ratios are medians over the rounds, pair by pair.
2. Iterations of conjugate gradients to a relative residual of 1e-4 for a perturbed right-hand side, plain, with the
   nearest circulant matrix as preconditioner, and with ours: several masks, noises and shifts 1 / s^2, with maps that
   fill the image and maps that vanish around an object; and the seconds these take, with those to set ours up.
3. The same for the posterior of a Gaussian field (``GaussianField.power_law``, std 0.3): the sum of both precisions.
4. ``NonCartesian``: forward, adjoint and Toeplitz normal operator of a radial trajectory, and the iterations.
"""

import argparse
import importlib.util
import json
import os
import platform
import statistics
import time
import warnings
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from potentia import ConvergenceWarning, energies, likelihoods
from potentia._cg import conjugate_gradients
from potentia._random import standard_normal
from potentia._structure import MatrixFree

TOLERANCE = 1e-4
MOST = 3000  # iterations


def in_turn(calls: dict[str, Callable[[], object]], repeats: int) -> dict[str, list[float]]:
    """Seconds of every call, one round after the other, the first two rounds left out."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for round_ in range(repeats + 2):
        for name, call in calls.items():
            begun = time.perf_counter()
            call()
            if round_ >= 2:
                times[name].append(time.perf_counter() - begun)
    return times


def ratio(times: dict[str, list[float]], a: str, b: str) -> float:
    return statistics.median(p / q for p, q in zip(times[a], times[b], strict=True))


def masks(side: int) -> dict[str, Tensor]:
    plane = (side, side)
    return {
        "1-D, 2x": likelihoods.cartesian_mask(plane, 2),
        "1-D, 8x": likelihoods.cartesian_mask(plane, 8, centre_fraction=0.04),
        "equispaced, 4x": equispaced(side, 4),
        "2-D, 6x": likelihoods.poisson_disk_mask(plane, 6),
    }


def equispaced(side: int, step: int) -> Tensor:
    """Every so many columns, and 8 % of them in the middle."""
    lines = torch.zeros(side)
    lines[::step] = lines[round(0.46 * side) : round(0.54 * side)] = 1
    return lines.expand(side, side).contiguous()


def object_of(side: int) -> Tensor:
    y = torch.linspace(-1, 1, side)
    return (y[:, None] / 0.9).square() + (y / 0.75).square() < 1


def peer_gradient(maps: Tensor, mask: Tensor, x: Tensor, y: Tensor) -> Callable[[], object] | None:
    """The gradient of deepinv's physics on the same data, None where deepinv is missing."""
    if importlib.util.find_spec("deepinv") is None:
        return None
    from deepinv.physics import MultiCoilMRI

    physics = MultiCoilMRI(mask=mask[None, None], coil_maps=maps[None], img_size=(2, *maps.shape[-2:]))
    image = torch.view_as_real(x[:, 0]).movedim(-1, 1).contiguous()
    data = torch.view_as_real(y).movedim(-1, 1).contiguous()
    return lambda: physics.A_adjoint(physics.A(image) - data)


def normal_operator(side: int, coils: int, repeats: int) -> dict[str, Any]:
    maps = likelihoods.birdcage_maps(coils, (side, side))
    generator = torch.Generator().manual_seed(0)
    told: dict[str, Any] = {}
    for name, mask in masks(side).items():
        operator = likelihoods.Sense(maps, mask)
        for batch in (1, 8):
            x = standard_normal((batch, 1, side, side), generator, dtype=torch.complex64)
            y = operator(x)
            term = likelihoods.Gaussian(y[0], operator, 0.02)
            arrays = maps * x
            calls: dict[str, Callable[[], object]] = {
                "bare": lambda arrays=arrays: torch.fft.ifft2(torch.fft.fft2(arrays)),
                "normal": lambda operator=operator, x=x: operator.normal(x),
                "gradient": lambda term=term, x=x: term.grad(x),
            }
            peer = peer_gradient(maps, mask, x, y)
            if peer is not None:
                calls["deepinv"] = peer
            times = in_turn(calls, repeats)
            row = {"ms": {n: 1e3 * statistics.median(t) for n, t in times.items()}}
            row["normal / bare"] = ratio(times, "normal", "bare")
            row["deepinv / gradient"] = ratio(times, "deepinv", "gradient") if peer is not None else None
            told[f"{name}, batch {batch}"] = row
    return told


def iterations(structure: MatrixFree, rhs: Tensor, shift: float, how: str) -> tuple[int, float, float]:
    """Iterations, seconds to set up, seconds to solve."""
    begun = time.perf_counter()
    near = structure.approximation
    precondition = {
        "plain": lambda: None,
        "circulant": lambda: None if near is None else lambda v: near.solve(v, shift),
        "ours": lambda: structure._precondition(shift),
    }[how]()
    made = time.perf_counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        result = conjugate_gradients(
            lambda v: structure.action(v) + shift * v,
            rhs,
            precondition=precondition,
            tolerance=TOLERANCE,
            max_iterations=MOST,
        )
    return result.iterations, made - begun, time.perf_counter() - made


def solved(structure: MatrixFree, side: int, shift: float) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(1)
    white = structure.white(generator, (1, 1, side, side), dtype=torch.complex64)
    rhs = structure.perturb(white, shift)
    row: dict[str, Any] = {}
    for how in ("plain", "circulant", "ours"):
        number, setup, seconds = iterations(structure, rhs, shift, how)
        row[how] = {"iterations": number, "seconds": seconds, "setup": setup}
    row["ours / plain"] = row["ours"]["iterations"] / row["plain"]["iterations"]
    return row


def cases(side: int, coils: int, noises: list[float]) -> Iterator[tuple[str, MatrixFree]]:
    maps, inside = likelihoods.birdcage_maps(coils, (side, side)), object_of(side)
    for where, m in (("everywhere", maps), ("an object", maps * inside)):
        for name, mask in masks(side).items():
            for noise in noises:
                form = likelihoods.Sense(m, mask).gram(torch.full((1, 1, 1), noise**-2), (1, side, side))
                assert isinstance(form, MatrixFree)
                yield f"{name}, maps {where}, noise {noise:g}", form


def solver(side: int, coils: int, noises: list[float], scales: list[float]) -> dict[str, Any]:
    return {f"{name}, s {s:g}": solved(form, side, s**-2) for name, form in cases(side, coils, noises) for s in scales}


def beside_field(side: int, coils: int, noises: list[float]) -> dict[str, Any]:
    mean = torch.zeros(1, 1, 1, dtype=torch.complex64)
    prior = energies.GaussianField.power_law((1, side, side), 2.0, std=0.3, mean=mean).quadratic()
    assert prior is not None
    rows = {}
    for name, form in cases(side, coils, noises):
        total = form + prior.structure
        assert isinstance(total, MatrixFree)
        rows[name] = solved(total, side, 0.0)
    return rows


def non_cartesian(side: int, coils: int, repeats: int) -> dict[str, Any] | str:
    if importlib.util.find_spec("finufft") is None:
        return "left out: finufft is not installed"
    maps = likelihoods.birdcage_maps(coils, (side, side))
    trajectory = likelihoods.radial_trajectory(side // 4, 2 * side, golden=True).float()
    operator = likelihoods.NonCartesian(trajectory, (side, side), maps)
    x = standard_normal((1, 1, side, side), torch.Generator().manual_seed(0), dtype=torch.complex64)
    y = operator(x)
    form = operator.gram(torch.full((1, 1), 0.02**-2), (1, side, side))
    assert isinstance(form, MatrixFree)
    calls: dict[str, Callable[[], object]] = {
        "forward": lambda: operator(x),
        "adjoint": lambda: operator.adjoint(y),
        "Toeplitz normal": lambda: form.apply(x),
    }
    times = in_turn(calls, max(3, repeats // 3))
    told: dict[str, Any] = {"ms": {n: 1e3 * statistics.median(t) for n, t in times.items()}}
    told["solver"] = {f"s {s:g}": solved(form, side, s**-2) for s in (0.1, 1.0)}
    return told


def solver_lines(rows: dict[str, Any]) -> list[str]:
    lines = [
        "| case | plain | circulant | ours | ours / plain | plain, s | ours, s | set up, s |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for name, row in rows.items():
        plain, ours = row["plain"], row["ours"]
        lines.append(
            f"| {name} | {plain['iterations']} | {row['circulant']['iterations']} | {ours['iterations']} | "
            f"{row['ours / plain']:.2f} | {plain['seconds']:.2f} | {ours['seconds']:.2f} | {ours['setup']:.2f} |"
        )
    return lines


def markdown(record: dict[str, Any]) -> str:
    lines = ["# Magnetic resonance imaging", "", f"{record['date']}, {record['machine']}; {record['what']}.", ""]
    lines += ["| normal operator | bare FFT, ms | normal, ms | normal / bare | deepinv / our gradient |"]
    lines += ["| --- | ---: | ---: | ---: | ---: |"]
    for name, row in record["normal"].items():
        peer = row["deepinv / gradient"]
        lines.append(
            f"| {name} | {row['ms']['bare']:.1f} | {row['ms']['normal']:.1f} | {row['normal / bare']:.2f} | "
            f"{'not installed' if peer is None else f'{peer:.2f}'} |"
        )
    lines += ["", f"Iterations to {TOLERANCE:g}, at most {MOST}:", "", *solver_lines(record["solver"])]
    lines += ["", "Beside a Gaussian field:", "", *solver_lines(record["beside a field"])]
    scattered = record["non-Cartesian"]
    if isinstance(scattered, str):
        return "\n".join([*lines, "", f"Non-Cartesian: {scattered}."]) + "\n"
    timed = ", ".join(f"{name} {ms:.1f} ms" for name, ms in scattered["ms"].items())
    return "\n".join([*lines, "", f"Non-Cartesian: {timed}.", "", *solver_lines(scattered["solver"])]) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--side", type=int, default=320)
    parser.add_argument("--coils", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--noises", type=float, nargs="*", default=[0.01, 0.05])
    parser.add_argument("--scales", type=float, nargs="*", default=[0.1, 0.3, 1.0], help="s, with shift 1 / s^2")
    parser.add_argument("--out", type=Path, help="results: OUT.json and OUT.md")
    options = parser.parse_args()
    torch.set_num_threads(1)
    record = {
        "date": f"{datetime.now(UTC):%Y-%m-%d}",
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}",
        "what": f"{options.coils} coils, {options.side} x {options.side}, torch {torch.__version__}, one thread",
        "normal": normal_operator(options.side, options.coils, options.repeats),
        "solver": solver(options.side, options.coils, options.noises, options.scales),
        "beside a field": beside_field(options.side, options.coils, options.noises),
        "non-Cartesian": non_cartesian(options.side, options.coils, options.repeats),
    }
    print(markdown(record))
    if options.out:
        options.out.with_name(options.out.name + ".json").write_text(json.dumps(record, indent=1) + "\n")
        options.out.with_name(options.out.name + ".md").write_text(markdown(record))


if __name__ == "__main__":
    main()
