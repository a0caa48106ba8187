"""Time to import potentia against the time to import torch, each in a fresh process.

    python benchmarks/imports.py [--repeats 9]

Both are run in turn; the figure is the median of the ratios pair by pair. ``layers`` also loads energies, likelihoods,
annealers and inference, which a script needs.
"""

import argparse
import statistics
import subprocess
import sys
import time

STATEMENTS = {
    "torch": "import torch",
    "potentia": "import potentia",
    "layers": "from potentia import annealers, energies, inference, likelihoods",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=9)
    options = parser.parse_args()
    times: dict[str, list[float]] = {name: [] for name in STATEMENTS}
    for round_ in range(options.repeats + 1):
        for name, statement in STATEMENTS.items():
            begun = time.perf_counter()
            subprocess.run([sys.executable, "-c", statement], check=True)
            if round_:
                times[name].append(time.perf_counter() - begun)
    for name, values in times.items():
        ratio = statistics.median(a / b for a, b in zip(values, times["torch"], strict=True))
        print(f"{name:10}{statistics.median(values):8.3f} s{ratio:8.3f} x torch")
    limit = 1.15
    met = statistics.median(a / b for a, b in zip(times["potentia"], times["torch"], strict=True))
    print(f"import potentia / import torch: {met:.3f} (at most {limit}: {'met' if met <= limit else 'NOT met'})")


if __name__ == "__main__":
    main()
