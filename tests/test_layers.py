"""Imports run one way: algebra, then energies | likelihoods | annealers | io, then inference, then facade and tools.

The room "training" stands beside inference: of the package, it sees algebra, energies and io.
"""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
LAYERS = ("annealers", "energies", "inference", "io", "likelihoods")
ROOMS = ("_cli", "report", "testing", "training")  # those that stand in src/potentia
# What each may import of potentia, beside itself; None is anything.
ALLOWED: dict[str, set[str] | None] = {
    "algebra": set(),
    "annealers": set(),
    "energies": {"algebra"},
    "likelihoods": {"algebra"},
    "io": {"algebra"},
    "inference": {"algebra", "annealers", "io"},
    "training": {"algebra", "energies", "io"},
    "facade": None,
    "_cli": None,
    "report": {"algebra", "inference", "io"},
    "testing": None,
}
HEAVY = {
    "PIL", "arviz", "dask", "deepinv", "diffusers", "distributed", "finufft", "h5netcdf", "h5py",
    "huggingface_hub", "ismrmrd", "lightning_fabric", "matplotlib", "nibabel", "nilearn", "numba",
    "pydicom", "pylops", "pyro", "pywt", "sigpy", "skimage", "sklearn",
}  # fmt: skip
# What a room is for may be heavy: nobody imports it who does not want that.
AT_HOME = {"training": {"lightning_fabric"}}
# Files that are themselves imported only when they are asked for, since their classes derive from a heavy package's.
LATE = {"_pyro_kernel.py": {"pyro"}}
MOST_LINES = 600
BESIDE = ("tests", "benchmarks", "docs", "examples")  # folders of code that is not installed


def package_files() -> list[tuple[str, Path]]:
    """Every file of the package with the room that it belongs to."""
    source = ROOT / "src" / "potentia"
    files = [("facade" if p.stem in ("__init__", "__main__") else "algebra", p) for p in source.glob("*.py")]
    files += [(name, p) for name in ROOMS for p in (source / name).rglob("*.py")]
    return sorted(files + [(name, p) for name in LAYERS for p in (ROOT / name).rglob("*.py")])


def room_of(module: str) -> str | None:
    """The room that holds an imported module of potentia, None for another package."""
    parts = module.split(".")
    if parts[0] != "potentia":
        return None
    if len(parts) == 1:
        return "facade"
    return parts[1] if parts[1] in (*LAYERS, *ROOMS) else "algebra"


def imports(tree: ast.AST, at_import: bool = True) -> Iterator[tuple[ast.Import | ast.ImportFrom, bool]]:
    """Every import with whether it runs when the module does: not within a function, nor for type checkers alone."""
    for node in ast.iter_child_nodes(tree):
        runs = at_import and not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield node, at_import
        elif isinstance(node, ast.If) and (test := ast.unparse(node.test)).endswith("TYPE_CHECKING"):
            running = test.startswith("not ")
            yield from imports(ast.Module(node.body, []), runs and running)
            yield from imports(ast.Module(node.orelse, []), runs and not running)
        else:
            yield from imports(node, runs)


def named_at_run_time(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Line and module of every import by a call: ``import_module("potentia.io")``, ``__import__("potentia.io")``."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] in ("import_module", "__import__"):
            for given in node.args[:1]:
                if isinstance(given, ast.Constant) and isinstance(given.value, str):
                    yield node.lineno, given.value


def modules(node: ast.Import | ast.ImportFrom) -> list[str]:
    """What an import names; ``from potentia import io`` names ``potentia.io``."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    base = node.module or ""
    return [f"potentia.{alias.name}" for alias in node.names] if base == "potentia" else [base]


def faults(room: str, source: str, late: set[str] | None = None) -> list[str]:
    """What a file of a room does against the rules, one sentence a fault; ``late`` is what it may import."""
    found, tree = [], ast.parse(source)
    named = list(named_at_run_time(tree))
    for node, at_import in imports(tree):
        if isinstance(node, ast.ImportFrom) and node.level:
            found.append(f"line {node.lineno}: relative import")
            continue
        for module in modules(node):
            if at_import and module.split(".")[0] in HEAVY - AT_HOME.get(room, set()) - (late or set()):
                found.append(f"line {node.lineno}: {module} is imported at module level")
            named.append((node.lineno, module))
    allowed = ALLOWED[room]
    for line, module in named:
        other = room_of(module)
        if other is not None and allowed is not None and other != room and other not in allowed:
            found.append(f"line {line}: {room} imports {module} of {other}")
    if len(source.splitlines()) > MOST_LINES:
        found.append(f"{len(source.splitlines())} lines, at most {MOST_LINES}")
    return found


@pytest.mark.parametrize(("room", "path"), package_files(), ids=lambda v: str(v).removeprefix(f"{ROOT}/"))
def test_imports_run_one_way(room: str, path: Path) -> None:
    assert faults(room, path.read_text(), LATE.get(path.name)) == []


def test_every_room_is_looked_at() -> None:
    assert {room for room, _ in package_files()} == set(ALLOWED)
    folders = [ROOT / "src", *(ROOT / layer for layer in LAYERS)]
    there = {path.resolve() for folder in folders for path in folder.rglob("*.py")}
    assert there == {path for _, path in package_files()}, "a file of the package belongs to no room"


@pytest.mark.parametrize(
    "path", [p for name in BESIDE for p in sorted((ROOT / name).rglob("*.py"))], ids=lambda p: p.name
)
def test_files_beside_the_package_stay_short(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= MOST_LINES


def test_test_files_have_names_of_their_own() -> None:
    names = [path.name for path in (ROOT / "tests").rglob("*.py") if path.name != "conftest.py"]
    assert sorted(names) == sorted(set(names))
    assert "__init__.py" not in names


@pytest.mark.parametrize(
    ("room", "source", "expected"),
    [
        ("annealers", "from . import x", ["line 1: relative import"]),
        ("annealers", "from .x import y", ["line 1: relative import"]),
        ("algebra", "import potentia.energies", ["line 1: algebra imports potentia.energies of energies"]),
        ("algebra", "from potentia import io", ["line 1: algebra imports potentia.io of io"]),
        ("algebra", "from potentia._cg import solve", []),
        ("algebra", "import potentia", ["line 1: algebra imports potentia of facade"]),
        ("annealers", "from potentia._tensor import x", ["line 1: annealers imports potentia._tensor of algebra"]),
        ("annealers", "from potentia.annealers._level import Level", []),
        ("energies", "from potentia.likelihoods import Mask", [
            "line 1: energies imports potentia.likelihoods of likelihoods"
        ]),
        ("energies", "def f():\n    from potentia.io import read_image", [
            "line 2: energies imports potentia.io of io"
        ]),
        ("likelihoods", "from potentia._potential import Likelihood", []),
        ("inference", "from potentia.io import x\nfrom potentia.annealers import y\nfrom potentia._cg import z", []),
        ("inference", "class A:\n    def f(self):\n        import potentia.energies.x", [
            "line 3: inference imports potentia.energies.x of energies"
        ]),
        ("io", "if TYPE_CHECKING:\n    from potentia.inference import sample", [
            "line 2: io imports potentia.inference of inference"
        ]),
        ("io", "if TYPE_CHECKING:\n    from matplotlib.figure import Figure", []),
        ("io", "if not TYPE_CHECKING:\n    import zarr\nelse:\n    import numpy", []),
        ("io", "if not TYPE_CHECKING:\n    import h5py\nelse:\n    import pyro", [
            "line 2: h5py is imported at module level"
        ]),
        ("algebra", "import importlib\nx = importlib.import_module('potentia.io._scan')", [
            "line 2: algebra imports potentia.io._scan of io"
        ]),
        ("energies", "x = lambda: __import__('potentia.likelihoods')", [
            "line 1: energies imports potentia.likelihoods of likelihoods"
        ]),
        ("facade", "from importlib import import_module\nx = import_module('potentia.io')", []),
        ("likelihoods", "from potentia.likelihoods import a\nfrom potentia import _tensor, annealers", [
            "line 2: likelihoods imports potentia.annealers of annealers"
        ]),
        ("report", "import potentia.energies", ["line 1: report imports potentia.energies of energies"]),
        ("io", "try:\n    import matplotlib.pyplot\nexcept ImportError:\n    pass", [
            "line 2: matplotlib.pyplot is imported at module level"
        ]),
        ("io", "class A:\n    import pyro", ["line 2: pyro is imported at module level"]),
        ("io", "def f():\n    import matplotlib.pyplot", []),
        ("io", "x = lambda: __import__('dask')\nimport dask.array as da", [
            "line 2: dask.array is imported at module level"
        ]),
        ("facade", "from potentia import energies\nimport potentia.testing", []),
        ("_cli", "from potentia.inference import sample\nimport sklearn", [
            "line 2: sklearn is imported at module level"
        ]),
        ("training", "import lightning_fabric\nfrom potentia.io import x\nfrom potentia.energies import EDM", []),
        ("training", "import huggingface_hub", ["line 1: huggingface_hub is imported at module level"]),
        ("training", "def f():\n    from potentia.inference import sample", [
            "line 2: training imports potentia.inference of inference"
        ]),
        ("energies", "from lightning_fabric import Fabric", [
            "line 1: lightning_fabric is imported at module level"
        ]),
        ("energies", "from potentia.training import fit", ["line 1: energies imports potentia.training of training"]),
        ("_cli", "from diffusers import UNet2DModel", ["line 1: diffusers is imported at module level"]),
        ("testing", "x = 1\n" * 601, ["601 lines, at most 600"]),
    ],
)  # fmt: skip
def test_planted_faults_are_found(room: str, source: str, expected: list[str]) -> None:
    assert faults(room, source) == expected
