"""What the stability page and the citation say is what the package is."""

import sys
import tomllib
from pathlib import Path

import pytest

from potentia.energies import _weights
from potentia.io import _schema

sys.path.insert(0, str(Path(__file__).parent))  # where the script beside this file stands

from promised_names import MODULES, PAGE, names, parts

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
# The keys of a citation file, version 1.2.0 of its schema.
KEYS = {
    "abstract", "authors", "cff-version", "commit", "contact", "date-released", "doi", "identifiers", "keywords",
    "license", "license-url", "message", "preferred-citation", "references", "repository", "repository-artifact",
    "repository-code", "title", "type", "url", "version",
}  # fmt: skip
REQUIRED = {"authors", "cff-version", "message", "title"}
PERSON = {"affiliation", "alias", "email", "family-names", "given-names", "name", "orcid", "website"}


def test_the_promised_names_are_those_that_are_listed() -> None:
    _, between, _ = parts(PAGE.read_text(encoding="utf-8"))
    assert between == names(), "write them anew: python tests/release/promised_names.py"


def test_every_module_of_the_facade_is_promised() -> None:
    import potentia

    layers = {name for name in potentia.__all__ if isinstance(getattr(potentia, name), type(sys))}
    assert {m.removeprefix("potentia.") for m in MODULES[1:]} == layers


def test_the_versions_of_the_formats_are_those_of_the_code() -> None:
    text = PAGE.read_text(encoding="utf-8")
    assert f"| ensemble store | {_schema.STORE_VERSION} |" in text
    assert f"| weights | {_weights.FORMAT} |" in text


def test_the_citation_is_one_and_agrees_with_the_project() -> None:
    yaml = pytest.importorskip("yaml")
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert set(cited) <= KEYS
    assert set(cited) >= REQUIRED
    assert cited["cff-version"] == "1.2.0"
    assert cited["type"] in ("software", "dataset")
    assert all(set(author) <= PERSON and author for author in cited["authors"])
    assert str(cited["version"]) == PROJECT["version"]
    assert cited["license"] == PROJECT["license"]
    assert cited["title"].lower() == PROJECT["name"]
    assert cited["keywords"] == PROJECT["keywords"]
    assert [author["name"] for author in cited["authors"]] == [author["name"] for author in PROJECT["authors"]]
