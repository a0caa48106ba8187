"""The documentation says what is so: its code runs, its commands parse, its names, links and pictures exist."""

import importlib
import importlib.util
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import typer.main
from scan_files import (
    complex_normal,
    ellipse,
    header,
    lines_of,
    noise_lines,
    smooth_maps,
    write_dicom,
    write_fastmri,
    write_ismrmrd,
)

from potentia._cli._app import app
from potentia.io._kspace import centre_crop, centred_fft

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = sorted(page for page in DOCS.rglob("*.md") if "_build" not in page.parts)
TOLD = [ROOT / "README.md", *PAGES]  # what speaks to users
LAYERS = ("energies", "likelihoods", "annealers", "inference", "io", "training", "testing")

_FENCE = re.compile(r"^(`{3,})([^\n`]*)\n(.*?)^\1[ ]*$", flags=re.DOTALL | re.MULTILINE)


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def fences(text: str) -> Iterator[tuple[str, str]]:
    """Language and content of each fenced block."""
    for _, language, content in _FENCE.findall(text):
        yield language.strip(), content


def prose(text: str) -> str:
    """The page without its blocks."""
    return _FENCE.sub("", text)


def spans(text: str) -> list[str]:
    """Code within the prose."""
    return re.findall(r"(?<!`)`([^`\n]+)`(?!`)", prose(text))


# The code runs.


def write_scan_files(folder: Path) -> None:
    """An ellipse seen by eight coils whose noise is correlated, oversampled twice, every second line and the middle."""
    nibabel = pytest.importorskip("nibabel")
    for package in ("ismrmrd", "pydicom", "sigpy"):
        pytest.importorskip(package)
    mixing = 0.02 * (np.eye(8) + 0.2 * complex_normal((8, 8), seed=5))
    wide = np.zeros((8, 96, 160), np.complex64)
    wide[..., 40:120] = smooth_maps(8, (96, 80)) * ellipse((96, 80))
    noisy = centred_fft(wide) + np.tensordot(mixing, complex_normal(wide.shape, seed=1), axes=1)
    noise = mixing @ complex_normal((8, 6400), seed=2)
    rows = [row for row in range(96) if row % 2 == 0 or 36 <= row < 60]
    xml = header((96, 160), fov=(400.0, 240.0, 5.0), recon=(80, 96), recon_fov=(200.0, 240.0))
    write_ismrmrd(folder / "scan.h5", noise_lines(noise) + lines_of(noisy[None], rows=rows), xml)
    kspace = noisy[None].swapaxes(-1, -2)
    reference = centre_crop(np.abs(kspace[:, 0]), (80, 80)).astype(np.float32)
    xml = header((96, 160), recon=(80, 80))
    write_fastmri(folder / "fastmri.h5", kspace, xml=xml, reference=reference)
    (folder / "series").mkdir()
    for at in range(3):
        write_dicom(folder / "series" / f"{at}.dcm", np.full((4, 5), at, "u2"), position=(0, 0, 3 * at))
    nibabel.save(nibabel.Nifti1Image(np.zeros((4, 5, 6), np.float32), np.eye(4)), folder / "t1.nii")


# Pages whose code reads files, and who writes them; all others begin in an empty folder.
FILES: dict[str, Callable[[Path], None]] = {"docs/mri-data.md": write_scan_files}


@cache
def blocks(page: Path) -> tuple[str, ...]:
    """A page's Python, each block behind so many blank lines that errors name the page's own lines."""
    text = page.read_text(encoding="utf-8")
    found = re.finditer(r"^```python\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE)
    return tuple("\n" * text.count("\n", 0, block.start(1)) + block[1] for block in found)


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page)], ids=name_of)
def test_the_code_of_a_page_runs_in_order(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    FILES.get(name_of(page), lambda _: None)(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MPLBACKEND", "Agg")
    scope: dict[str, object] = {"__name__": "__main__"}
    for block in blocks(page):
        exec(compile(block, str(page), "exec"), scope)


def test_code_is_found_on_the_pages_that_teach() -> None:
    for page in ("start.md", *(f"concepts/{name}.md" for name in CONCEPTS)):
        assert len(blocks(DOCS / page)) >= 2, page
    assert len(blocks(DOCS / "mri-data.md")) >= 11


def test_no_python_hides_in_blocks_that_are_not_run() -> None:
    for page in PAGES:
        for language, content in fences(page.read_text(encoding="utf-8")):
            if language not in ("python", "python-console"):
                assert not re.search(r"^(import|from) \w+", content, flags=re.MULTILINE), (page, language, content)


# The commands parse.


def command_lines(text: str) -> Iterator[str]:
    """Lines ``potentia ...`` of shell blocks, and those within the prose."""
    for language, content in fences(text):
        if language in ("", "sh", "bash", "console", "shell"):
            for line in content.replace("\\\n", " ").splitlines():
                found = re.search(r"(?:^|\s)(?:-m )?potentia (?=[a-z-])(.*)", line.removeprefix("$ "))
                if found:
                    yield found[1]
    for span in spans(text):
        if span.startswith("potentia "):
            yield span.removeprefix("potentia ") + " ..."  # in a sentence, not all is said


def fault_of(line: str) -> str | None:
    """What the command line's own parser says against a line; None if nothing.

    ``...`` stands for what is left out, so that nothing is missing then.
    """
    words = shlex.split(line, comments=True)
    partial = "..." in words
    words = [word for word in words if word not in ("...", "--help")]
    command, path = typer.main.get_command(app), "potentia"
    while words and hasattr(command, "commands"):
        name = words.pop(0)
        if name not in command.commands:
            return f"{path} has no command {name!r}"
        command, path = command.commands[name], f"{path} {name}"
    try:
        command.make_context(path, words, resilient_parsing=False)
    except Exception as err:
        missing = type(err).__name__ in ("MissingParameter", "NoArgsIsHelpError")
        return None if missing and partial else f"{path}: {getattr(err, 'message', None) or type(err).__name__}"
    return None


@pytest.mark.parametrize("page", TOLD, ids=name_of)
def test_the_commands_of_a_page_are_those_of_the_command_line(page: Path) -> None:
    for line in command_lines(page.read_text(encoding="utf-8")):
        assert fault_of(line) is None, f"{line}: {fault_of(line)}"


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        ("smaple --data x --store y", "no command 'smaple'"),
        ("train teechers digits-28", "no command 'teechers'"),
        ("sample --data x --store y --noise 0.1", "No such option"),
        ("sample --data x", "Missing"),
        ("sample --data x --store y --draws many", "integer"),
        ("show one.zarr two.zarr", "extra argument"),
        ("report ... --fast", "No such option"),
    ],
)
def test_a_wrong_command_line_is_caught(line: str, fault: str) -> None:
    assert fault in (fault_of(line) or "")


def test_commands_are_found() -> None:
    text = "```sh\ntorchrun -m potentia sample ... # here\npotentia show \\\n  x.zarr\n```\nand `potentia report`\n"
    assert list(command_lines(text)) == ["sample ... # here", "show    x.zarr", "report ..."]
    assert len(list(command_lines((ROOT / "README.md").read_text(encoding="utf-8")))) > 10


@pytest.mark.parametrize("page", TOLD, ids=name_of)
def test_the_scripts_and_make_targets_of_a_page_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    shell = "\n".join(content for language, content in fences(text) if language in ("", "sh", "bash"))
    for script in re.findall(r"python ((?:benchmarks|examples|docs)/\S+\.py)", shell + "\n".join(spans(text))):
        assert (ROOT / script).is_file(), script
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.MULTILINE))
    assert set(re.findall(r"^make ([a-z]+)", shell, flags=re.MULTILINE)) <= targets


# The names exist.


def dotted_names(text: str) -> Iterator[str]:
    """``potentia.x.y``, ``energies.X`` and their like within the code of the prose, from ``potentia`` on."""
    pattern = rf"(?<![\w./-])(potentia|pt|{'|'.join(LAYERS)})((?:\.[A-Za-z_]\w*)+)"
    for span in spans(text):
        for layer, rest in re.findall(pattern, span):
            if not re.fullmatch(r"\.(py|md|zarr|toml|egg)", rest):
                yield "potentia" + ("" if layer in ("potentia", "pt") else f".{layer}") + rest


def exists(name: str) -> bool:
    """Whether a dotted name leads somewhere: modules, attributes, and fields that a class annotates."""
    found: object = importlib.import_module("potentia")
    for part in name.split(".")[1:]:
        if isinstance(found, ModuleType) and not hasattr(found, part):
            path = f"{found.__name__}.{part}"
            if importlib.util.find_spec(path) is None:
                return False
            found = importlib.import_module(path)
        elif hasattr(found, part):
            found = getattr(found, part)
        else:
            return any(part in vars(cls).get("__annotations__", {}) for cls in getattr(found, "__mro__", ()))
    return True


@pytest.mark.parametrize("page", TOLD, ids=name_of)
def test_the_names_of_a_page_exist(page: Path) -> None:
    missing = [name for name in dotted_names(page.read_text(encoding="utf-8")) if not exists(name)]
    assert not missing


def test_a_wrong_name_is_caught() -> None:
    text = (
        "`energies.Gausian(mean)` and `pt.sample(x, inference.ALPS(a))`, `io.Scan.kspace`, `potentia.testing`, `io.py`"
    )
    assert [(name, exists(name)) for name in dotted_names(text)] == [
        ("potentia.energies.Gausian", False),
        ("potentia.sample", True),
        ("potentia.inference.ALPS", True),
        ("potentia.io.Scan.kspace", True),
        ("potentia.testing", True),
    ]


# Links and pictures lead somewhere.


def slug(heading: str) -> str:
    """The anchor of a heading, as GitHub and MyST make it."""
    words = re.sub(r"`|\*|\[([^\]]*)\]\([^)]*\)", r"\1", heading).strip().lower()
    return re.sub(r"[^\w\- ]", "", words).replace(" ", "-")


def anchors(page: Path) -> set[str]:
    text = page.read_text(encoding="utf-8")
    headings = re.findall(r"^#+ (.*)$", prose(text), flags=re.MULTILINE)
    return {slug(heading) for heading in headings} | set(re.findall(r"^\(([\w-]+)\)=$", text, flags=re.MULTILINE))


def broken_links(page: Path, text: str) -> list[str]:
    targets = re.findall(r"\]\(<?([^)>\s]+)>?(?: \"[^\"]*\")?\)", re.sub(r"(?<!`)`[^`\n]+`", "", prose(text)))
    broken = []
    for target in targets:
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        if not file.exists() or (anchor and file.suffix == ".md" and anchor not in anchors(file)):
            broken.append(target)
    return broken


@pytest.mark.parametrize("page", TOLD, ids=name_of)
def test_links_and_pictures_of_a_page_are_there(page: Path) -> None:
    assert not broken_links(page, page.read_text(encoding="utf-8"))


def test_a_broken_link_is_caught() -> None:
    page = DOCS / "start.md"
    text = "[a](no-such.md) [b](start.md#no-such) [c](start.md#what-next) ![d](pictures/demo.png) `[e](code)`"
    assert broken_links(page, text) == ["no-such.md", "start.md#no-such"]


CONCEPTS = ("potential", "multi-scale-energy", "likelihood", "annealer", "sampler", "ensemble")


@pytest.mark.parametrize("concept", CONCEPTS)
def test_every_concept_has_a_picture_in_both_variants(concept: str) -> None:
    text = (DOCS / "concepts" / f"{concept}.md").read_text(encoding="utf-8")
    assert f"](../pictures/{concept}.png)" in text
    for suffix in ("", "-dark"):
        assert (DOCS / "pictures" / f"{concept}{suffix}.png").stat().st_size < 150_000


def test_the_pictures_are_those_of_the_script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("matplotlib")
    image = pytest.importorskip("PIL.Image")
    monkeypatch.syspath_prepend(DOCS)
    figures = importlib.import_module("figures")
    assert tuple(figures.FIGURES) == CONCEPTS
    monkeypatch.setattr(figures, "FOLDER", tmp_path)
    monkeypatch.setattr(sys, "argv", ["figures.py", "potential"])
    figures.main()
    for name in ("potential.png", "potential-dark.png"):
        with image.open(tmp_path / name) as drawn, image.open(DOCS / "pictures" / name) as kept:
            assert drawn.size == kept.size
    monkeypatch.setattr(sys, "argv", ["figures.py", "potentials"])
    with pytest.raises(SystemExit):
        figures.main()


def test_every_page_is_in_the_table_of_contents() -> None:
    listed: set[str] = set()
    for page in PAGES:
        for language, content in fences(page.read_text(encoding="utf-8")):
            if language == "{toctree}":
                entries = [line for line in content.splitlines() if line and not line.startswith(":")]
                for entry in entries:
                    found = [path.relative_to(DOCS).as_posix() for path in page.parent.glob(f"{entry}.md")]
                    assert found, f"{name_of(page)}: there is no {entry}"
                    listed.update(found)
    assert {page.relative_to(DOCS).as_posix() for page in PAGES} - {"index.md"} == listed


# The reference is whole.


def documented() -> dict[str, list[str]]:
    """The names that the API pages list, by module."""
    found: dict[str, list[str]] = {}
    for page in (DOCS / "api").glob("*.md"):
        for language, content in fences(page.read_text(encoding="utf-8")):
            if language.startswith("{names} "):
                found.setdefault(language.removeprefix("{names} "), []).extend(content.split())
    return found


@pytest.mark.parametrize("layer", LAYERS)
def test_every_public_name_is_in_the_reference_once(layer: str) -> None:
    module = importlib.import_module(f"potentia.{layer}")
    names = [name for name in module.__all__ if not isinstance(getattr(module, name), ModuleType)]
    listed = documented()[f"potentia.{layer}"]
    assert sorted(listed) == sorted(names), f"docs/api/{layer}.md"


def test_every_name_of_the_facade_is_in_the_reference() -> None:
    facade = importlib.import_module("potentia")
    text = (DOCS / "api" / "potentia.md").read_text(encoding="utf-8")
    for name in facade.__all__:
        if not isinstance(getattr(facade, name), ModuleType):
            assert name in documented()["potentia"] or f"`pt.{name}`" in text, name


def test_the_modules_of_testing_are_in_the_reference() -> None:
    for module in ("potentia.testing.strategies", "potentia.testing.examples"):
        loaded = importlib.import_module(module)
        names = [
            name
            for name, value in vars(loaded).items()
            if not name.startswith("_") and callable(value) and getattr(value, "__module__", "") == module
        ]
        assert set(names) == set(documented()[module])


# The site.


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built as for readers; any warning of Sphinx is an error."""
    for package in ("sphinx", "furo", "myst_parser", "sphinx_copybutton"):
        pytest.importorskip(package, reason="needs the extra docs")
    out = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-b", "html", str(DOCS), str(out)]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr
    return out


def test_the_site_has_every_page_and_every_public_name(site: Path) -> None:
    for page in PAGES:
        assert (site / page.relative_to(DOCS).with_suffix(".html")).is_file()
    for module, names in documented().items():
        pages = "".join(path.read_text(encoding="utf-8") for path in (site / "api").glob("*.html"))
        for name in names:
            assert f'id="{module}.{name}"' in pages, f"{module}.{name}"


def test_the_site_needs_no_network(site: Path) -> None:
    for page in site.rglob("*.html"):
        text = page.read_text(encoding="utf-8")
        loaded = re.findall(r"<(?:script|img|link|iframe)\b[^>]*?\b(?:src|href)=\"([^\"]+)\"", text)
        assert loaded
        assert not [target for target in loaded if re.match(r"(?:https?:)?//", target)], page


@pytest.fixture
def extensions(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], ModuleType]:
    """What imports one of the site's own extensions."""
    pytest.importorskip("sphinx", reason="needs the extra docs")
    monkeypatch.syspath_prepend(DOCS / "_extensions")
    return importlib.import_module


def test_docstrings_become_words_and_fields(extensions: Callable[[str], ModuleType]) -> None:
    rendered = extensions("plain_docstrings").rendered
    lines = [
        "Energy of ||x||, ``a * b``.",
        "",
        "It is plain. Shapes: x (*batch, C); returns",
        "    (*batch,). Units: nats.",
    ]
    lines += ["Raises: ValueError if", "    x_ is wrong.", "", "It is", "", "    y = |x|", "    z = 2", "", "in all."]
    lines += ["", "Raises:", "    TypeError: For others.", "", "    And for these."]
    assert rendered(lines) == [
        r"Energy of \|\|x\|\|, ``a * b``.",
        "",
        "It is plain.",
        "",
        r":Shapes: x (\*batch, C); returns (\*batch,).",
        ":Units: nats.",
        r":Raises: ValueError if x\_ is wrong.",
        "",
        "It is",
        "",
        "::",
        "",
        "    y = |x|",
        "    z = 2",
        "",
        "in all.",
        "",
        "Raises:",
        "    TypeError: For others.",
        "",
        "    And for these.",
    ]


def test_formulas_become_mathml(extensions: Callable[[str], ModuleType]) -> None:
    mathml = extensions("mathml")
    assert mathml.convert(r"\frac12", block=False) == mathml.convert(r"\frac{1}{2}", block=False)
    assert mathml.convert("x'", block=False) == mathml.convert(r"x^{\prime}", block=False)
    assert mathml.convert(r"\dots", block=False) == mathml.convert(r"\ldots", block=False)
    assert "mspace" in mathml.convert(r"\log p", block=False)
    assert "mspace" not in mathml.convert(r"\log(p)", block=False)
    assert mathml.convert(r"\|x\|^2", block=False).count('stretchy="false"') == 2
    assert 'stretchy="false"' not in mathml.convert(r"\left\|x\right\|^2", block=False)
    with pytest.raises(mathml.MathError):
        mathml.convert(r"\nosuchcommand", block=False)


def test_names_lead_to_where_they_are_documented(extensions: Callable[[str], ModuleType]) -> None:
    target_of = extensions("linked_names").target_of
    assert target_of("pt.sample(posterior, num_chains=8)") == "potentia.inference.sample"
    assert target_of("inference.ALPS.calibrated(modes=True)") == "potentia.inference.ALPS.calibrated"
    assert target_of("potentia.Potential") == "potentia.Potential"
    assert [target_of(code) for code in ("energies", "ensemble.mean()", "energies.Gausian", "ptarmigan")] == [None] * 4


def test_formulas_and_fields_are_rendered(site: Path) -> None:
    potential = (site / "concepts" / "potential.html").read_text(encoding="utf-8")
    assert potential.count("<math") >= 4
    assert "$" not in re.sub(r"<(script|style|pre)\b.*?</\1>", "", potential, flags=re.DOTALL)
    reference = (site / "api" / "likelihoods.html").read_text(encoding="utf-8")
    assert reference.count(">Shapes<") + reference.count(">Shapes<span") > 20
    assert not re.search(r"<p>(Shapes|Units|Raises|Source):", reference)
    assert "only-dark" in potential
    assert "only-light" in potential
