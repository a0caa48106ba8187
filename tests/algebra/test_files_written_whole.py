"""Files appear whole or not at all, and durable ones only once they are on the disk."""

import os
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import pytest
from hypothesis import given
from hypothesis import strategies as st

from potentia._files import sync_tree, written_whole


def write(path: Path, *, meanwhile: Callable[[], object] = lambda: None, **options: bool) -> None:
    with written_whole(path, **options) as staging:
        assert staging.parent == path.parent
        assert not staging.exists()
        staging.write_text("new")
        meanwhile()


@pytest.mark.parametrize("options", [{}, {"replace": False}, {"durable": True}, {"replace": False, "durable": True}])
def test_a_file_is_written(tmp_path: Path, options: dict[str, bool]) -> None:
    write(tmp_path / "a.txt", **options)
    assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [("a.txt", "new")]


@pytest.mark.parametrize("existing", [True, False])
@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
def test_a_failure_leaves_what_there_was(tmp_path: Path, existing: bool, error: type[BaseException]) -> None:
    if existing:
        (tmp_path / "a.txt").write_text("old")

    with pytest.raises(error, match="half-way"):
        write(tmp_path / "a.txt", meanwhile=mock.Mock(side_effect=error("half-way")))
    assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == ([("a.txt", "old")] if existing else [])


@pytest.mark.parametrize("links", [True, False])
def test_what_has_come_meanwhile_is_replaced_only_when_asked(tmp_path: Path, links: bool) -> None:
    path = tmp_path / "a.txt"
    with mock.patch("os.link", os.link if links else mock.Mock(side_effect=OSError("this disk knows no links"))):
        with pytest.raises(FileExistsError, match=r"a\.txt: a file exists there already; pass overwrite=True"):
            write(path, replace=False, meanwhile=lambda: path.write_text("came first"))
        assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [("a.txt", "came first")]
        write(path)
        assert path.read_text() == "new"
        write(tmp_path / "b.txt", replace=False)
        assert (tmp_path / "b.txt").read_text() == "new"


@given(stem=st.text("ab.é ", min_size=1, max_size=80), ending=st.sampled_from([".nii.gz", ".nc", ".html", ""]))
def test_the_place_ends_as_the_name_does(stem: str, ending: str) -> None:
    path = Path("folder") / f"a{stem}a{ending}"
    given: list[Path] = []
    with pytest.raises(FileNotFoundError), written_whole(path) as staging:  # there is no such folder
        given.append(staging)
    assert given[0].name.endswith(ending)
    assert given[0].name.startswith(".")
    assert given[0].name != path.name


@pytest.mark.skipif(os.name == "nt", reason="folders cannot be synced there")
def test_durable_files_reach_the_disk_before_their_name_and_their_name_after(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, events = tmp_path / "a.txt", []
    fsync: Callable[[int], None] = os.fsync
    replace = os.replace

    def synced(handle: int) -> None:
        events.append((os.fstat(handle).st_ino, path.exists()))
        fsync(handle)

    def renamed(*names: Path) -> None:
        events.append(("rename", path.exists()))
        replace(*names)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "replace", renamed)
    write(path)
    assert events == [("rename", False)]
    path.unlink()
    write(path, durable=True)
    assert events[1:] == [(path.stat().st_ino, False), ("rename", False), (tmp_path.stat().st_ino, True)]


@pytest.mark.skipif(os.name == "nt", reason="folders cannot be synced there")
def test_a_tree_is_synced_to_the_last_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "b" / "c").mkdir(parents=True)
    (tmp_path / "empty").mkdir()
    for name in ("a", "b/a", "b/c/a"):
        (tmp_path / name).write_text(name)
    seen: list[int] = []
    monkeypatch.setattr(os, "fsync", lambda handle: seen.append(os.fstat(handle).st_ino))
    sync_tree(tmp_path)
    everything = [tmp_path, *tmp_path.rglob("*")]
    assert len(everything) == 7
    assert sorted(seen) == sorted(p.stat().st_ino for p in everything)
