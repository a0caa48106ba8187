"""What the benchmarks share: the head of a record, its files, tables and fits, and the options of every command.

A record is a JSON object with an ``about`` (machine, versions, date). Markdown and figure are made of the JSON alone:
``publish`` writes all three, ``--draw`` makes the last two again without measuring anything.
"""

import argparse
import ctypes
import json
import math
import os
import platform
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from matplotlib.figure import Figure

RESULTS = Path(__file__).resolve().parent / "results"
Content = dict[str, Any]


def about(device: str = "cpu", packages: Sequence[str] = ("potentia", "torch", "numpy")) -> Content:
    """Date, machine and versions; packages that are not installed are left out."""
    versions = {}
    for name in packages:
        with suppress(PackageNotFoundError):
            versions[name] = version(name)
    return {
        "date": f"{datetime.now(UTC):%Y-%m-%d}",
        "machine": _machine(device),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load": round(os.getloadavg()[0], 1),
        "python": platform.python_version(),
        "versions": versions,
    }


def _machine(device: str) -> str:
    if torch.device(device).type == "cuda":
        return torch.cuda.get_device_name(device)
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    return next((x.split(":")[1].strip() for x in lines if "model name" in x), platform.machine())


def sentence(told: Mapping[str, Any]) -> str:
    """The head of a record in words; what was not noted (None) is left out."""
    parts = [told["date"], told["machine"], f"{told['cores']} cores", f"{told['threads']} thread(s)"]
    if told["load"] is not None:
        parts.append(f"load {told['load']} at the start")
    if told["python"] is not None:
        parts.append(f"Python {told['python']}")
    return ", ".join([*parts, *(f"{name} {number}" for name, number in told["versions"].items())]) + "."


def machine() -> str:
    """Date, processor, threads and versions, in a sentence, of a row that was measured just now."""
    told = about()
    versions = ", ".join(f"{name} {number}" for name, number in told["versions"].items())
    return f"{told['date']}, {told['machine']}, {told['threads']} thread(s); Python {told['python']}, {versions}."


def table(head: Sequence[str], rows: Sequence[Sequence[str]], *, words: int = 1) -> list[str]:
    """Markdown; the first ``words`` columns hold words, the others numbers."""
    marks = ["---"] * words + ["---:"] * (len(head) - words)
    return ["| " + " | ".join(line) + " |" for line in (head, marks, *rows)]


def verdict(value: float, limit: float, digits: int = 2) -> str:
    """Whether a number is at most its limit."""
    return f"at most {limit:.{digits}f}: {'met' if value <= limit else 'NOT met'}"


def files(out: Path) -> dict[str, Path]:
    """OUT.json, OUT.md and OUT.png."""
    return {end: out.with_name(f"{out.name}.{end}") for end in ("json", "md", "png")}


def publish(
    out: Path,
    content: Mapping[str, Any],
    report: Callable[[Content], str],
    figure: "Callable[[Content], Figure | None] | None" = None,
) -> str:
    """Write the JSON and, from what it says, Markdown and figure; return the Markdown."""
    place = files(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    place["json"].write_text(json.dumps(content, indent=1) + "\n", "utf-8")
    return redraw(out, report, figure)


def redraw(
    out: Path, report: Callable[[Content], str], figure: "Callable[[Content], Figure | None] | None" = None
) -> str:
    """Make Markdown and figure of OUT.json; return the Markdown.

    Raises: SystemExit if there is no OUT.json.
    """
    place = files(out)
    if not place["json"].exists():
        raise SystemExit(f"{place['json']}: is absent, so that there is nothing to draw from")
    content = json.loads(place["json"].read_text("utf-8"))
    text = report(content).rstrip("\n") + "\n"
    place["md"].write_text(text, "utf-8")
    drawn = figure(content) if figure is not None else None
    if drawn is not None:
        drawn.savefig(place["png"], dpi=110)
    return text


def resumed(out: Path, settings: Mapping[str, Any]) -> list[Content]:
    """The rows of OUT.json, if it was measured with these settings; none if it is absent.

    Raises: SystemExit for other settings.
    """
    place = files(out)["json"]
    if not place.exists():
        return []
    content = json.loads(place.read_text("utf-8"))
    if content["settings"] != dict(settings):
        raise SystemExit(f"{place}: was run with {content['settings']}, expected {dict(settings)} to resume it")
    rows: list[Content] = content["rows"]
    return rows


def parser(doc: str | None, name: str, *flags: str) -> argparse.ArgumentParser:
    """A command line with ``--out``, ``--device``, ``--quick`` and ``--draw``, and further flags such as ``--resume``.

    ``parsed`` reads it.
    """
    made = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--out", type=Path, help=f"results: OUT.json, OUT.md, OUT.png; {RESULTS.name}/[DEVICE-]{name}")
    made.add_argument("--device", default="cpu", help="cpu, or such as cuda, whose results are kept apart")
    made.add_argument("--quick", action="store_true", help="a trial of seconds, whose numbers mean nothing")
    made.add_argument("--draw", action="store_true", help="make Markdown and figure of OUT.json, and measure nothing")
    for flag in flags:
        made.add_argument(flag, action="store_true")
    made.set_defaults(name=name)
    return made


def parsed(made: argparse.ArgumentParser, arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The options, with the place of the results and one thread on the CPU."""
    options = made.parse_args(arguments)
    kind = torch.device(options.device).type
    if kind == "cuda" and not torch.cuda.is_available() and not options.draw:
        made.error(f"--device {options.device}: torch sees no such device")
    if options.out is None:
        if options.quick:
            made.error("--quick needs an --out of its own: its numbers are no results")
        options.out = RESULTS / (options.name if kind == "cpu" else f"{kind}-{options.name}")
    torch.set_num_threads(1)
    return options


def synchronise(device: str) -> None:
    """Wait until the device has done what it was asked for."""
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)


def seconds(call: Callable[[], object], device: str = "cpu") -> float:
    """CPU seconds of this process, which other work on the machine lengthens less than wall time; on a GPU wall time.

    ``call`` must not sleep, wait for a disk, or hand its work to other processes.
    """
    clock = time.process_time if torch.device(device).type == "cpu" else time.perf_counter
    synchronise(device)
    begun = clock()
    call()
    synchronise(device)
    return clock() - begun


class Peak:
    """The most bytes held within a ``peak_memory`` above those before it, once that has ended."""

    bytes = math.nan


@contextmanager
def peak_memory(device: str = "cpu") -> Iterator[Peak]:
    """Watch the most memory held: what torch allocates on a GPU, the process's resident memory on Linux.

    Elsewhere it stays NaN. What the process holds already and uses again is not seen, so that freed memory is given
    back to the system first.
    """
    peak = Peak()
    if torch.device(device).type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        yield peak
        peak.bytes = float(torch.cuda.max_memory_allocated(device) - before)
    elif Path("/proc/self/clear_refs").exists():
        with suppress(OSError, AttributeError):
            ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
        before = _kilobytes("VmRSS")
        yield peak
        peak.bytes = 1024.0 * (_kilobytes("VmHWM") - before)
    else:
        yield peak


def _kilobytes(what: str) -> int:
    status = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in status if line.startswith(what)).split()[1])


def slope(work: Sequence[float], cost: Sequence[float]) -> float:
    """Slope of log cost against log work by least squares: 1 where cost grows as the work does.

    Raises: ValueError for fewer than two points, or for numbers that are not positive.
    """
    if len(work) != len(cost) or len(work) < 2 or min(*work, *cost) <= 0:
        raise ValueError(f"slope: got work {list(work)} and cost {list(cost)}, expected two positive pairs or more")
    x, y = ([math.log(v) for v in values] for values in (work, cost))
    mean_x, mean_y = (sum(values) / len(values) for values in (x, y))
    across = sum((a - mean_x) ** 2 for a in x)
    if across == 0:
        raise ValueError(f"slope: got the work {work[0]} alone, expected two different ones")
    return sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y, strict=True)) / across


def environment() -> dict[str, str]:
    """The surroundings of a process that measures on one thread and may import the benchmarks."""
    here = str(Path(__file__).resolve().parent)
    path = os.pathsep.join(p for p in (here, os.environ.get("PYTHONPATH", "")) if p)
    threads = {f"{kind}_NUM_THREADS": "1" for kind in ("OMP", "MKL", "OPENBLAS")}
    return {**os.environ, **threads, "PYTHONPATH": path}


def python(code: str, *arguments: str) -> list[str]:
    """The command of a process that runs ``code``."""
    return [sys.executable, "-c", code, *arguments]
