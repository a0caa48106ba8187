"""Time to import potentia against the time to import torch, each in a fresh process.

    python benchmarks/imports.py [--repeats 9] [--quick] [--draw] [--out benchmarks/results/imports]

All are run in turn, ``layers`` being energies, likelihoods, annealers and inference, which a script needs. Seconds are
wall seconds, medians over the rounds; the ratios are medians of the ratios pair by pair.
"""

import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from _record import about, parsed, parser, publish, redraw, sentence, table, verdict

if TYPE_CHECKING:
    from matplotlib.figure import Figure

STATEMENTS = {
    "torch": "import torch",
    "potentia": "import potentia",
    "layers": "from potentia import annealers, energies, inference, likelihoods",
}
LIMIT = 1.15


def measure(repeats: int) -> dict[str, list[float]]:
    """Seconds of each statement in every round but the first."""
    times: dict[str, list[float]] = {name: [] for name in STATEMENTS}
    for round_ in range(repeats + 1):
        for name, statement in STATEMENTS.items():
            begun = time.perf_counter()
            subprocess.run([sys.executable, "-c", statement], check=True)
            if round_:
                times[name].append(time.perf_counter() - begun)
    return times


def ratios(times: dict[str, list[float]]) -> dict[str, float]:
    """Of each statement's time to torch's, the median over the rounds."""
    return {
        name: statistics.median(a / b for a, b in zip(values, times["torch"], strict=True))
        for name, values in times.items()
    }


def report(content: dict[str, Any]) -> str:
    times = content["seconds"]
    found = ratios(times)
    rows = [[STATEMENTS[n], f"{statistics.median(v):.3f}", f"{found[n]:.3f}"] for n, v in times.items()]
    lines = ["# Import", "", sentence(content["about"]), "", *table(["statement", "seconds", "of torch"], rows), ""]
    lines.append(f"import potentia over import torch: {found['potentia']:.3f} ({verdict(found['potentia'], LIMIT)})")
    return "\n".join(lines)


def figure(content: dict[str, Any]) -> "Figure":
    from matplotlib.figure import Figure

    made = Figure(figsize=(5, 2.2), layout="constrained")
    axis = made.subplots()
    times = content["seconds"]
    axis.barh(list(times), [statistics.median(v) for v in times.values()])
    axis.set(xlabel="seconds to import")
    axis.invert_yaxis()
    return made


def main(arguments: Sequence[str] | None = None) -> None:
    made = parser(__doc__, "imports")
    made.add_argument("--repeats", type=int, default=9)
    options = parsed(made, arguments)
    if options.draw:
        print(redraw(options.out, report, figure))
        return
    repeats = 1 if options.quick else options.repeats
    content = {"about": about(), "settings": {"repeats": repeats}, "seconds": measure(repeats)}
    print(publish(options.out, content, report, figure))


if __name__ == "__main__":
    main()
