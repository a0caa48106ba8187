"""What is released: a wheel built from a clean copy holds the whole package and nothing else, and works."""

import base64
import csv
import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
VERSION = PROJECT["project"]["version"]
INFO = f"potentia-{VERSION}.dist-info"
# What git ignores, its own folder, and the documentation, which no build reads.
LEFT_OUT = shutil.ignore_patterns(
    ".git", ".venv", ".*_cache", ".hypothesis", ".coverage*", "__pycache__", "*.egg-info", "build", "dist", "htmlcov",
    "runs", "*.zarr", "bench-store-*", "docs", "node_modules",
)  # fmt: skip
LARGEST = 30_000_000  # bytes


class Built(NamedTuple):
    """A copy of the tree, and what was built from it."""

    tree: Path
    sdist: Path
    wheel: Path


def build(tree: Path, kind: str, into: Path) -> Path:
    """Call setuptools itself, as ``python -m build`` and pip do, without either and without a network."""
    code = f"import setuptools.build_meta as b; print(b.build_{kind}({str(into)!r}))"
    done = subprocess.run([sys.executable, "-c", code], cwd=tree, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return into / done.stdout.splitlines()[-1]


def copy_of_the_tree(folder: Path) -> Path:
    return Path(shutil.copytree(ROOT, folder / "tree", symlinks=True, ignore=LEFT_OUT))


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    pytest.importorskip("setuptools", minversion="77", reason="building needs setuptools")
    folder = tmp_path_factory.mktemp("release")
    tree = copy_of_the_tree(folder)
    return Built(tree, build(tree, "sdist", folder), build(tree, "wheel", folder))


@pytest.fixture(scope="module")
def clean(built: Built, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Python of an environment with the wheel in it, which finds the dependencies and no trace of this tree.

    Their folder stands in a .pth file: so it is on the path, but the .pth file of a development install is not read.
    """
    folder = tmp_path_factory.mktemp("clean")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    python = folder / "bin" / "python"
    install = ["install", "--quiet", "--no-deps", "--no-index", "--no-compile", "--disable-pip-version-check"]
    subprocess.run([sys.executable, "-m", "pip", "--python", str(python), *install, str(built.wheel)], check=True)
    site = next((folder / "lib").glob("python3.*/site-packages"))
    (site / "dependencies.pth").write_text("\n".join(p for p in sys.path if p.endswith("site-packages")) + "\n")
    return python


def run(python: Path, *arguments: str) -> str:
    """What a command of the clean environment prints, in a folder of nothing."""
    env = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "COV"))} | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [str(python), *arguments], cwd=python.parent, env=env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def expected(tree: Path) -> set[str]:
    """Every file of every package: the code, and the data that the patterns take along."""
    tables = PROJECT["tool"]["setuptools"]
    found = set()
    for package, folder in tables["package-dir"].items():
        for pattern in ["*.py", *tables["package-data"].get(package, [])]:
            place = package.replace(".", "/")
            found |= {f"{place}/{p.relative_to(tree / folder).as_posix()}" for p in (tree / folder).glob(pattern)}
    return found


def contents(wheel: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(wheel) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def test_the_wheel_holds_the_package_and_nothing_else(built: Built) -> None:
    held = contents(built.wheel)
    package = {name for name in held if not name.startswith(f"{INFO}/")}
    assert package == expected(built.tree)
    assert {"potentia/py.typed", "potentia/energies/weights/digits-28.safetensors"} <= package
    info = {name.removeprefix(f"{INFO}/") for name in set(held) - package}
    assert info == {"METADATA", "RECORD", "WHEEL", "entry_points.txt", "licenses/LICENSE", "top_level.txt"}
    assert {name.partition("/")[0] for name in held} == {"potentia", INFO}, "no tests, benchmarks, examples or data"
    assert built.wheel.name == f"potentia-{VERSION}-py3-none-any.whl"
    assert built.wheel.stat().st_size < LARGEST


def test_the_wheel_is_what_its_record_says(built: Built) -> None:
    held = contents(built.wheel)
    rows = {name: digest for name, digest, _ in csv.reader(io.StringIO(held[f"{INFO}/RECORD"].decode()))}
    assert set(rows) == set(held)
    for name, digest in rows.items():
        if digest:
            sha = base64.urlsafe_b64encode(hashlib.sha256(held[name]).digest()).rstrip(b"=").decode()
            assert digest == f"sha256={sha}", name


def test_the_metadata_say_what_the_project_says(built: Built) -> None:
    project = PROJECT["project"]
    text = contents(built.wheel)[f"{INFO}/METADATA"].decode()
    for line in (
        "Name: potentia", f"Version: {VERSION}", "License-Expression: MIT", "License-File: LICENSE",
        f"Requires-Python: {project['requires-python']}", "Description-Content-Type: text/markdown",
    ):  # fmt: skip
        assert f"{line}\n" in text
    required = [row for row in text.splitlines() if row.startswith("Requires-Dist: ") and "extra ==" not in row]
    assert len(required) == len(project["dependencies"])
    assert {row for row in text.splitlines() if row.startswith("Provides-Extra: ")} == {
        f"Provides-Extra: {extra}" for extra in project["optional-dependencies"]
    }


def test_the_sdist_makes_the_same_wheel(built: Built, tmp_path: Path) -> None:
    with tarfile.open(built.sdist) as archive:
        names = archive.getnames()
        archive.extractall(tmp_path, filter="data")
    assert f"potentia-{VERSION}/pyproject.toml" in names
    again = build(tmp_path / f"potentia-{VERSION}", "wheel", tmp_path)
    assert {**contents(again), f"{INFO}/RECORD": b""} == {**contents(built.wheel), f"{INFO}/RECORD": b""}


def test_the_sdist_holds_no_data_of_others_and_nothing_that_is_made(built: Built) -> None:
    with tarfile.open(built.sdist) as archive:
        names = [name.partition("/")[2] for name in archive.getnames()]
    assert not [n for n in names if n.startswith(("shared", "benchmarks/results", ".venv", ".git"))]
    assert not [n for n in names if n.endswith((".pyc", ".zarr", ".npy", ".h5"))]
    assert built.sdist.stat().st_size < LARGEST


IMPORTS = """
import importlib, importlib.metadata, json, pathlib, pkgutil
import potentia
walked = pkgutil.walk_packages(potentia.__path__, "potentia.")
names = ["potentia", *(m.name for m in walked if m.name != "potentia.__main__")]
loaded = {name: importlib.import_module(name).__file__ for name in names}
from potentia import energies
print(json.dumps({
    "loaded": loaded,
    "version": potentia.__version__,
    "metadata": importlib.metadata.version("potentia"),
    "shipped": energies.shipped(),
    "scales": energies.load("digits-28").scales,
    "typed": (pathlib.Path(potentia.__file__).parent / "py.typed").is_file(),
}))
"""


def test_every_module_of_the_wheel_is_imported_from_it(clean: Path, built: Built) -> None:
    told = json.loads(run(clean, "-W", "error::DeprecationWarning:potentia", "-c", IMPORTS))
    site = clean.parent.parent.resolve()
    assert all(Path(file).resolve().is_relative_to(site) for file in told["loaded"].values())
    modules = {
        n.removesuffix(".py").replace("/", ".").removesuffix(".__init__")
        for n in expected(built.tree)
        if n.endswith(".py")
    }
    assert set(told["loaded"]) == modules - {"potentia.__main__"}
    assert told["version"] == told["metadata"] == VERSION
    weights = {p.stem for p in (ROOT / "energies" / "weights").glob("*.safetensors")}
    assert set(told["shipped"]) == weights
    assert told["scales"][0] < told["scales"][1]
    assert told["typed"]


def test_the_command_line_is_installed(clean: Path) -> None:
    script = clean.parent / "potentia"
    assert run(script, "--version").strip() == VERSION
    assert run(clean, "-m", "potentia", "--version").strip() == VERSION
    shown = run(script, "--help")
    for command in ("demo", "sample", "train"):
        assert command in shown


def without(text: str, *lines: str) -> str:
    for line in lines:
        assert text.count(line) == 1
        text = text.replace(line, "")
    return text


@pytest.mark.parametrize(
    ("lines", "missing"),
    [
        (
            ('    "potentia.training",\n', '"potentia.training" = "src/potentia/training"\n'),
            "potentia/training/_runner.py",
        ),
        (('"potentia.energies" = ["weights/*.safetensors"]\n',), "potentia/energies/weights/digits-28.safetensors"),
    ],
    ids=["a package that is not listed", "data that no pattern takes"],
)
def test_what_the_wheel_lacks_is_seen(built: Built, tmp_path: Path, lines: tuple[str, ...], missing: str) -> None:
    """The planted faults: a wheel of a project that forgets something is not what is expected of this one."""
    tree = copy_of_the_tree(tmp_path)
    table = tree / "pyproject.toml"
    table.write_text(without(table.read_text(encoding="utf-8"), *lines), encoding="utf-8")
    held = set(contents(build(tree, "wheel", tmp_path)))
    assert missing in expected(built.tree) - held


def test_the_version_stands_in_one_place() -> None:
    """pyproject.toml; what is installed knows it by its metadata, and no module repeats it."""
    import potentia

    assert potentia.__version__ == VERSION, "the environment holds another version: install anew"
    folders = [ROOT / folder for folder in PROJECT["tool"]["setuptools"]["package-dir"].values()]
    repeated = [p for folder in folders for p in folder.glob("*.py") if f'"{VERSION}"' in p.read_text(encoding="utf-8")]
    assert repeated == []
    assert "dynamic" not in PROJECT["project"]
