"""Mutation testing: faults planted one at a time, by mutmut, in the algebra and in the Metropolis rule.

    python benchmarks/mutation.py [algebra] [accept-rule] [--work DIR] [--children 2] [--draw] [--out OUT]

Needs mutmut (pip install mutmut==3.8.1). A copy of the project is made in a work folder, the layers in place of the
links to them; mutmut plants the faults there, and runs the tests that reach each. A mutant that no test notices is
listed with the reason why it is no fault; one without a reason fails the command. About half an hour a target on two
cores; a second run in the same work folder goes on where the first stopped.
"""

import argparse
import json
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from _record import RESULTS, about, files, publish, redraw, sentence, table

ROOT = Path(__file__).resolve().parents[1]
# mutmut's exit codes; a fault that makes a loop endless is noticed by the clock.
NOTICED = {1, 3, 24, -24, 36, 152, 255}


@dataclass(frozen=True)
class Target:
    """Files to plant faults in, the tests that are to notice, and which of those are too slow to run once a fault."""

    files: tuple[str, ...]
    tests: tuple[str, ...]
    without: tuple[str, ...] = ()


TARGETS = {
    "algebra": Target(
        ("_algebra", "_cg", "_module", "_potential", "_quadratic", "_random", "_structure", "_tensor", "_validate"),
        ("tests/algebra",),
        ("points_at_the_caller",),  # mutmut's wrapper of a function stands between the two
    ),
    "accept-rule": Target(
        ("inference/_dual_averaging", "inference/_hmc", "inference/_mala", "inference/_metropolis"),
        tuple(f"tests/inference/test_{name}.py" for name in ("metropolis_rule", "adjusted_samplers", "mala", "hmc")),
        ("posterior_is_met", "runs_it_alone", "chees", "ChEES", "dense_proposal_densities"),
    ),
}

_ONE_DEVICE = "the tests run on one device, which is the default as well"
_SLOWER = "adds to a new tensor instead of in place: slower, and the same"
# Why what no test notices is no fault: a pattern of "function: line -> changed line", and the reason.
EQUIVALENT = (
    (r": (.*)cast\(\w+, (.*) -> \1cast\(None, \2$", "typing.cast does nothing when the program runs"),
    (r": (.*)device=.* -> \1(device=None|\))", _ONE_DEVICE),
    (r": (.*)device=[\w.]+, (.*) -> \1(device=None, )?\2$", _ONE_DEVICE),
    (r"ScoreOnly\.value_and_grad:", "whatever is handed on, forward refuses with the same sentence"),
    (r"filter_plane:.*size\[\+1\]", "size has two entries, of which the last is number 1"),
    (r"standard_normal: where = .* -> where = (None$|.* or True else)", _ONE_DEVICE),
    (r"standard_normal: (.*)dtype=real, (.*out=.*) -> \1(dtype=None, )?\2$", "what is written to says the dtype"),
    (r"Sum\.(grad|value_and_grad): .*own = False -> own = None", "None counts as False"),
    (r"Sum\.(grad|value_and_grad): .*own\), True -> .*(None\), True|own\), False)", _SLOWER),
    (r"_added: .* -> alike = None", _SLOWER),
    (r"_added: .* -> if own and alike and \(total", _SLOWER),
    (r"_added: .* -> .*requires_grad and grad", "a graph allows for adding in place where the total is the sum's own"),
    (r"(denoise_with_vjp|pulled_back): .*v\.to\(None\)", "autograd casts the vector itself"),
    (r"sum_event: .* -> .*(False else|XXmpsXX|MPS)", "the exception is for devices of Apple's, where no test runs"),
    (r"inner:.*or True else", "of real numbers, conjugate and real part are the numbers"),
    (r"chain_generators:.*generate_state\(2", "the first word is the same, however many are asked for"),
    (r"conjugate_gradients: max_iterations: int = 1000", "a limit of choice: nothing depends on its last step"),
    (r"conjugate_gradients: unit = .*2\.0\)", "a right-hand side of zero is zero in any unit"),
    (r"conjugate_gradients: stacklevel", "held by a test that mutmut's own wrapper gets in the way of"),
    (r"conjugate_gradients: p = r -> ", "set in the first iteration, before it is read"),
    (r"conjugate_gradients: p = q.*active, 1\.0", "an entry that is done moves by zero, whatever the direction"),
    (r"decide: .*< ratio -> .*<= ratio", "the two are equal with probability zero"),
    (r"_first_guess: .* > 0\.5 -> .* >= 0\.5", "the two are equal with probability zero"),
    (r"_first_guess: .*direction > 1(.*) -> .*direction >= 1\1", "the direction is two or one half"),
    (r"leapfrog: length = .* and False else step", "steps are held in double precision"),
    (
        r"_given: (.*)scales\[0\] > 0: -> \1scales\[(1\] >|0\] >=) 0:",
        "zero stands for the finest scale, as None does",
    ),
    (r"Adjusted\.start: like = .*\[2:\]", "zeros that are broadcast; of the rest, dtype and device are read"),
    (
        r"Adjusted\.init: (self\._metric\(posterior, State\(x, ).* -> \1",
        "of the state, only the image is read",
    ),
    (r"Adjusted\.freeze: frozen = kept\.get\(FROZEN\) -> frozen = ", _ONE_DEVICE),
    (
        r"Adjusted\.freeze: .* -> if self\.step_size is None or RECORD",
        "a given step size is its own average",
    ),
    (r"Module\.to:.*non_blocking", "a copy within one device does not wait"),
)


def main() -> None:
    """Plant, test, record."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("targets", nargs="*", metavar="TARGET", help=f"of {', '.join(TARGETS)}; all by default")
    options.add_argument("--work", type=Path, help="folder of the copies; a temporary one by default")
    options.add_argument("--children", type=int, default=2, help="so many mutants are tested side by side")
    options.add_argument("--draw", action="store_true", help="make Markdown of OUT.json, and test nothing")
    options.add_argument("--out", type=Path, default=RESULTS / "mutation", help="results: OUT.json and OUT.md")
    given = options.parse_args()
    if unknown := set(given.targets) - set(TARGETS):
        options.error(f"targets: got {', '.join(sorted(unknown))}, expected some of {', '.join(TARGETS)}")
    if given.draw:
        redraw(given.out, markdown)
        return
    place = files(given.out)["json"]
    record: dict[str, Any] = json.loads(place.read_text("utf-8")) if place.exists() else {"targets": {}}
    work = given.work or Path(tempfile.mkdtemp(prefix="mutation-"))
    for name in given.targets or TARGETS:
        plant(TARGETS[name], work / name, given.children)
        record["targets"][name] = outcome(TARGETS[name], work / name)
    record["about"] = about(packages=("torch", "pytest", "mutmut"))
    publish(given.out, record, markdown)
    open_ = [m["name"] for found in record["targets"].values() for m in found["unnoticed"] if not reason(m["change"])]
    if open_:
        sys.exit(f"mutation: {len(open_)} faults that no test notices have no reason, such as {open_[0]}")


def plant(target: Target, folder: Path, children: int) -> None:
    """Copy the project into a folder and run mutmut there."""
    for name in ("src", "tests"):
        hidden = shutil.ignore_patterns("__pycache__", ".*")
        shutil.copytree(ROOT / name, folder / name, dirs_exist_ok=True, ignore=hidden)
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]["pytest"]["ini_options"]
    chosen = ["-k", " and ".join(f"not {name}" for name in target.without)] if target.without else []
    tables = {
        "pytest.ini_options": {k: settings[k] for k in ("addopts", "pythonpath", "markers", "filterwarnings")},
        "mutmut": {
            "source_paths": ["src"],
            "only_mutate": [f"src/potentia/{file}.py" for file in target.files],
            "pytest_add_cli_args_test_selection": list(target.tests),
            "pytest_add_cli_args": ["-p", "no:cacheprovider", *chosen],
            "use_git_change_detection": False,
        },
    }
    lines = [
        f"[tool.{head}]\n" + "".join(f"{key} = {json.dumps(value)}\n" for key, value in body.items())
        for head, body in tables.items()
    ]
    (folder / "pyproject.toml").write_text("\n".join(lines), "utf-8")
    subprocess.run([sys.executable, "-m", "mutmut", "run", "--max-children", str(children)], cwd=folder, check=True)


def outcome(target: Target, folder: Path) -> dict[str, Any]:
    """How many faults a file were noticed, and those that were not."""
    counts, unnoticed = {}, []
    for file in target.files:
        meta = json.loads((folder / "mutants" / "src" / "potentia" / f"{file}.py.meta").read_text("utf-8"))
        codes: dict[str, int] = meta["exit_code_by_key"]
        counts[file] = {"planted": len(codes), "noticed": sum(code in NOTICED for code in codes.values())}
        unnoticed += [told(name, folder) for name, code in codes.items() if code not in NOTICED]
    return {"files": counts, "unnoticed": unnoticed}


def told(name: str, folder: Path) -> dict[str, str]:
    """A fault that went unnoticed: its name, and where what was changed."""
    command = [sys.executable, "-m", "mutmut", "show", name]
    shown = subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True).stdout.splitlines()
    old, new = (" ".join(x[1:].strip() for x in shown if re.match(rf"{s}(?!{s})", x)) for s in (r"\-", r"\+"))
    function = name.rpartition("__mutmut_")[0].rpartition(".")[2]
    function = function.removeprefix("x_").removeprefix("xǁ").replace("ǁ", ".")
    return {"name": name, "change": f"{function}: {old} -> {new}"}


def reason(change: str) -> str:
    """Why a change is no fault; nothing for one that nobody has explained."""
    return next((why for pattern, why in EQUIVALENT if re.search(pattern, change)), "")


def markdown(record: dict[str, Any]) -> str:
    """The page made of a record."""
    lines = ["# Mutation testing", "", sentence(record["about"]), ""]
    for name, found in record["targets"].items():
        rows = [[file, str(n["planted"]), str(n["noticed"])] for file, n in found["files"].items()]
        total = [str(sum(n[key] for n in found["files"].values())) for key in ("planted", "noticed")]
        lines += [
            f"## {name}",
            "",
            *table(["file", "faults planted", "noticed by a test"], [*rows, ["all", *total]]),
            "",
        ]
        if found["unnoticed"]:
            shown = [
                [f"`{m['change']}`".replace("|", "\\|"), reason(m["change"]) or "**unexplained**"]
                for m in found["unnoticed"]
            ]
            lines += ["Those that no test notices:", "", *table(["change", "why it is no fault"], shown, words=2), ""]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
