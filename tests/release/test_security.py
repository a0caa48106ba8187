"""What SECURITY.md says: nothing in the source runs what a file holds, and files that try are refused."""

import ast
import os
import pickle
import tomllib
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from potentia import energies, io
from potentia.training._checkpoint import read_checkpoint

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]["package-dir"]
BARE = {"__import__", "compile", "eval", "exec"}
MODULES = ("ctypes", "dill", "joblib", "marshal", "runpy", "shelve", "subprocess")
CALLS = {
    "cloudpickle.load", "cloudpickle.loads", "os.popen", "os.system", "pickle.Unpickler", "pickle.load", "pickle.loads",
    "yaml.load", "yaml.unsafe_load",
}  # fmt: skip
NEEDS = {"torch.load": ("weights_only", True), "numpy.load": ("allow_pickle", False)}
# Messages to Dask's workers, which the user's own scheduler carries: see SECURITY.md.
ALLOWED = {"inference/_dataset.py": Counter({"pickle.loads": 2})}


def breaches(source: str) -> Iterator[str]:
    """The calls in a source by which what a file holds may come to run, by their full names."""
    tree = ast.parse(source)
    known: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            known |= {(a.asname or a.name.partition(".")[0]): a.name for a in node.names}
        elif isinstance(node, ast.ImportFrom):
            known |= {(a.asname or a.name): f"{node.module}.{a.name}" for a in node.names}
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            head, _, rest = ast.unparse(node.func).partition(".")
            name = known.get(head, head) + ("." + rest if rest else "")
            given = {k.arg: k.value.value for k in node.keywords if isinstance(k.value, ast.Constant)}
            if name in NEEDS:
                keyword, value = NEEDS[name]
                wrong = given.get(keyword) is not value
            else:
                wrong = name in BARE | CALLS or name.partition(".")[0] in MODULES or given.get("shell") is True
            if wrong:
                yield name


def test_the_source_runs_nothing_that_a_file_holds() -> None:
    files = [p for folder in FOLDERS.values() for p in (ROOT / folder).glob("*.py")]
    assert len(files) > 150
    found = {p.relative_to(ROOT).as_posix(): Counter(breaches(p.read_text(encoding="utf-8"))) for p in files}
    assert {name: calls for name, calls in found.items() if calls} == ALLOWED


@pytest.mark.parametrize(
    "line",
    [
        "import pickle\npickle.loads(b'')",
        "import pickle as p\np.load(file)",
        "from pickle import loads as read\nread(b'')",
        "import torch\ntorch.load('a.pt')",
        "import torch\ntorch.load('a.pt', weights_only=False)",
        "import numpy as np\nnp.load('a.npy')",
        "import numpy as np\nnp.load('a.npy', allow_pickle=True)",
        "import yaml\nyaml.load(text)",
        "import os\nos.system('ls')",
        "import subprocess\nsubprocess.run(['ls'])",
        "def f(text):\n    return eval(text)",
        "exec('x = 1')",
        "run('ls', shell=True)",
    ],
)
def test_a_source_that_does_is_seen(line: str) -> None:
    """The planted faults."""
    assert list(breaches(line))
    assert not list(breaches("import json, torch\njson.loads('{}')\nmodel.eval()\ntorch.load('a', weights_only=True)"))


class Evil:
    """Makes a folder when a reader that lets it unpickles it."""

    def __init__(self, sentinel: Path) -> None:
        self.sentinel = sentinel

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.sentinel),)


def plain(path: Path, evil: Evil) -> None:
    path.write_bytes(pickle.dumps({"ema": evil}, protocol=2))


def by_torch(path: Path, evil: Evil) -> None:
    torch.save({"model": evil}, path)


def by_numpy(path: Path, evil: Evil) -> None:
    held = np.array([evil], dtype=object)
    with path.open("wb") as file:
        np.savez(file, image=held) if path.suffix == ".npz" else np.save(file, held, allow_pickle=True)


def as_store(path: Path, evil: Evil) -> None:
    path.mkdir()
    for name in ("zarr.json", "index.json"):
        (path / name).write_bytes(pickle.dumps(evil))


# The name of the file, what writes it, and what is asked to read it.
FILES: dict[str, tuple[str, Callable[[Path, Evil], None], Callable[[Path], object]]] = {
    "weights": ("a.safetensors", plain, energies.load),
    "weights, by torch": ("a.safetensors", by_torch, energies.load),
    "a card": ("a.safetensors", plain, energies.read_card),
    "an array": ("a.npy", by_numpy, io.read_array),
    "an array that is a pickle": ("a.npy", plain, io.read_array),
    "an archive of arrays": ("a.npz", by_numpy, io.read_array),
    "an image": ("a.npy", by_numpy, io.read_image),
    "a picture": ("a.png", plain, io.read_image),
    "a volume": ("a.nii.gz", plain, io.read_image),
    "a slice": ("a.dcm", plain, io.read_image),
    "a scan": ("a.h5", plain, io.read_scan),
    "a store": ("a.zarr", as_store, io.open_ensemble),
    "a checkpoint": ("a.pt", by_torch, lambda path: read_checkpoint(path, {})),
    "a checkpoint that is a pickle": ("a.pt", plain, lambda path: read_checkpoint(path, {})),
    "total deep variation": ("a.pth", by_torch, energies.TotalDeepVariation.load),
    "an EDM snapshot": ("a.pkl", plain, energies.read_edm_pickle),
    "an EDM snapshot to convert": (
        "a.pkl",
        plain,
        lambda path: energies.convert_edm_pickle(path, path.with_suffix(".st")),
    ),
}
NEED = {"a picture": "PIL", "a volume": "nibabel", "a slice": "pydicom", "a scan": "h5py"}


@pytest.mark.parametrize("kind", FILES)
def test_a_file_that_would_run_code_is_refused(kind: str, tmp_path: Path) -> None:
    if kind in NEED:
        pytest.importorskip(NEED[kind])
    name, write, read = FILES[kind]
    path, sentinel = tmp_path / name, tmp_path / "sentinel"
    write(path, Evil(sentinel))
    with pytest.raises(ValueError if kind != "a store" else io.StoreError, match="a\\."):
        read(path)
    assert not sentinel.exists()


@pytest.mark.parametrize("reader", ["pickle", "numpy", "torch"])
def test_the_files_would_run_code_in_a_reader_that_lets_them(reader: str, tmp_path: Path) -> None:
    """The planted faults: what the readers above would do without their care."""
    path, sentinel = tmp_path / "a.npy", tmp_path / "sentinel"
    evil = Evil(sentinel)
    if reader == "pickle":
        plain(path, evil)
        pickle.loads(path.read_bytes())
    elif reader == "numpy":
        by_numpy(path, evil)
        np.load(path, allow_pickle=True)
    else:
        by_torch(path, evil)
        torch.load(path, weights_only=False)
    assert sentinel.is_dir()


def test_zarr_knows_no_codec_that_unpickles() -> None:
    registry = pytest.importorskip("zarr.registry")
    for name in ("pickle", "numcodecs.pickle", "numcodecs.json2"):
        with pytest.raises(KeyError):
            registry.get_codec_class(name)


def test_the_page_names_what_is_tested() -> None:
    text = (ROOT / "SECURITY.md").read_text(encoding="utf-8")
    assert f"tests/release/{Path(__file__).name}" in text
    for section in ("What is promised", "What is trusted", "Reporting"):
        assert f"## {section}\n" in text
    assert hasattr(energies, "convert_edm_pickle")
