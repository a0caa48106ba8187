"""``potentia train``: teachers, energies and their evaluation."""

from pathlib import Path

from potentia._cli._report import print_rows
from potentia.training._judge import evaluate
from potentia.training._recipe import Recipe, read_recipe
from potentia.training._runner import Where, train_energy, train_teacher


def run_teacher(recipe: str, data: Path, out: Path | None, device: str, resume: bool, changes: tuple[str, ...]) -> None:
    """Train a teacher and say where its weights are."""
    made = read_recipe(recipe, changes)
    print_rows(f"weights in {train_teacher(made, _where(made, data, out, device, resume))}", [])


def run_energy(
    recipe: str,
    data: Path,
    out: Path | None,
    teacher: Path | None,
    no_teacher: bool,
    device: str,
    resume: bool,
    changes: tuple[str, ...],
) -> None:
    """Distil an energy and say where its weights are."""
    made = read_recipe(recipe, changes)
    where = _where(made, data, out, device, resume)
    source = None if no_teacher else teacher or where.out / "teacher.safetensors"
    print_rows(f"weights in {train_energy(made, where, source)}", [])


def run_evaluate(
    recipe: str,
    data: Path,
    out: Path | None,
    energy: str | None,
    teacher: Path | None,
    strange: str | None,
    write: bool,
    changes: tuple[str, ...],
) -> None:
    """Measure an energy and print a table."""
    made = read_recipe(recipe, changes)
    where = _where(made, data, out, "cpu", False)
    other = None if strange is None else read_recipe(strange)
    rows = evaluate(made, where, energy, teacher, other, write)
    print_rows(f"{made.name}: validation images", rows)


def _where(recipe: Recipe, data: Path, out: Path | None, device: str, resume: bool) -> Where:
    return Where(data, out or Path("runs") / recipe.name, device, resume)
