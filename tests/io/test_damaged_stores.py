"""Damaged stores: what opens is right, what is not fails with StoreError; and the checksums that see to it."""

import asyncio
import importlib.util
import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest import mock

import google_crc32c
import numpy as np
import pytest
import torch
import zarr
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from torch import Tensor
from zarr.abc.store import OffsetByteRequest, RangeByteRequest, SuffixByteRequest
from zarr.core.buffer import Buffer, default_buffer_prototype
from zarr.core.sync import sync

from potentia.io import EnsembleWriter, StoreError, open_ensemble
from potentia.io import _checked as checked
from potentia.io import _checksums as checksums
from potentia.io import _schema as schema
from potentia.io._checked import CheckedStore
from potentia.io._files import RegularFiles
from potentia.io._location import Location

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "damage.py"
EVENT = (1, 3, 4)


@pytest.fixture(scope="module")
def fuzzer() -> ModuleType:
    spec = importlib.util.spec_from_file_location("damage_benchmark", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


class TestFuzzer:
    def test_damaged_stores_open_right_or_are_refused(self, fuzzer: ModuleType, tmp_path: Path) -> None:
        tally, wrong = fuzzer.run(100, 1, tmp_path)
        assert wrong == []
        assert tally["refused"] > 50, "most damage matters"
        assert tally["same"] > 3, "some does not"

    @pytest.mark.filterwarnings("ignore::zarr.errors.ZarrUserWarning")
    def test_it_sees_wrong_numbers_where_checksums_are_not_looked_at(self, fuzzer: ModuleType, tmp_path: Path) -> None:
        async def trusting(self: CheckedStore, key: str, prototype: Any) -> Buffer | None:
            return await self._fetch(key, prototype) if self.accepted(key) else None

        with mock.patch.object(CheckedStore, "_checked", trusting):
            tally, _ = fuzzer.run(25, 1, tmp_path)
        assert tally["wrong"] > 3

    def test_it_sees_hangs_and_foreign_exceptions(self, fuzzer: ModuleType, tmp_path: Path) -> None:
        def endless(path: Path) -> None:
            while True:
                pass

        for planted, result in ((endless, "hang"), (mock.Mock(side_effect=KeyError("x")), "KeyError")):
            with mock.patch.multiple(fuzzer, told_by=planted, LIMIT=1):
                assert fuzzer.outcome(tmp_path, {})[0] == result

    def test_the_same_seed_does_the_same_damage(self, fuzzer: ModuleType, tmp_path: Path) -> None:
        told = []
        for name in ("a", "b"):
            sound = fuzzer.make_stores(tmp_path / name / "sound")
            store = tmp_path / name / "damaged" / "whole.zarr"
            for case in range(20):
                shutil.copytree(sound["whole"], store)
                told.append(fuzzer.damage(store, np.random.default_rng([0, case])))
                shutil.rmtree(store)
        assert told[:20] == told[20:]
        assert len(set(told)) == 20


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


IMAGES = normal(2, 6, *EVENT)  # chain, draw, then the event


@pytest.fixture
def small_blocks() -> Iterator[None]:
    with mock.patch.object(schema, "_CHUNK_BYTES", 3 * 4 * 3 * 4):  # three draws
        yield


def begin(path: Path, **options: Any) -> EnsembleWriter:
    return EnsembleWriter.create(
        path, num_chains=2, num_draws=6, event_shape=EVENT, constant={"truth": normal(*EVENT)}, state_bytes=32,
        queue_blocks=1, **options,
    )  # fmt: skip


def go_on(writer: EnsembleWriter, first: int, stop: int = 6) -> None:
    for k in range(first, stop):
        writer.append(IMAGES[:, k], {"lp": float(k)})
        if writer.ready_to_commit:
            writer.commit(f"after draw {k}".encode())


def a_life(path: Path) -> None:
    """All that happens to a store: made, closed within a block, taken up, completed, given a summary twice."""
    writer = begin(path)
    go_on(writer, 0, 4)
    writer.close(sampling_time=1.0)
    writer, _ = EnsembleWriter.resume(path, queue_blocks=1)
    go_on(writer, writer.num_committed)
    ensemble = writer.close(sampling_time=2.0)
    ensemble.set_summary("map", normal(*EVENT, seed=1))
    ensemble.set_summary("map", normal(*EVENT, seed=2))


def test_a_kill_before_any_write_leaves_committed_draws_whole(tmp_path: Path, small_blocks: None) -> None:
    path, put = tmp_path / "a.zarr", RegularFiles.set
    killed: list[Path] = []  # the store as a kill before each write would leave it
    in_turn = asyncio.Lock()  # files of one block are written side by side, and would be renamed while they are copied

    async def noted(self: RegularFiles, key: str, value: Buffer) -> None:
        async with in_turn:
            if path.exists():
                killed.append(tmp_path / "killed" / f"{len(killed)}.zarr")
                shutil.copytree(path, killed[-1])
            await put(self, key, value)

    with mock.patch.object(RegularFiles, "set", noted):
        a_life(path)
    assert len(killed) > 50
    for number, store in enumerate(killed):
        self_check(store)
        if number % 2:  # to resume costs more than to read
            continue
        writer, state = EnsembleWriter.resume(store, queue_blocks=1)
        n = writer.num_committed
        assert state == (f"after draw {n - 1}".encode() if n in (3, 6) else b"")  # closing early has no state
        go_on(writer, n)
        assert torch.equal(writer.close().samples(), IMAGES)
        assert Location.of(store).verify() > 20


def self_check(path: Path) -> None:
    try:
        ensemble = open_ensemble(path)
    except StoreError as err:
        if "no draw has been committed yet" not in str(err):
            raise
        return
    n = ensemble.num_draws
    assert torch.equal(ensemble.samples(), IMAGES[:, :n])
    np.testing.assert_allclose(ensemble.mean(), IMAGES[:, :n].double().mean(dim=(0, 1)), rtol=1e-6, atol=1e-7)
    summary = ensemble.tree["posterior_summary"]
    if "map" in summary:
        assert any(np.array_equal(summary["map"], normal(*EVENT, seed=seed)) for seed in (1, 2)), "a summary half made"


class TestReadersBesideAWriter:
    def test_an_open_ensemble_stays_right_while_the_run_goes_on(self, tmp_path: Path, small_blocks: None) -> None:
        writer = begin(tmp_path / "a.zarr")
        go_on(writer, 0, 4)
        writer.close()
        early = open_ensemble(tmp_path / "a.zarr")  # within a block, whose chunk is then replaced
        assert early.num_draws == 4
        writer, _ = EnsembleWriter.resume(tmp_path / "a.zarr", queue_blocks=1)
        go_on(writer, 4)
        writer.close(sampling_time=3.0)
        assert torch.equal(early.samples(), IMAGES[:, :4])
        np.testing.assert_allclose(early.mean(), IMAGES[:, :4].double().mean(dim=(0, 1)), rtol=1e-12)
        assert torch.equal(torch.from_numpy(np.asarray(early.image)), IMAGES[:, :4])

    def test_what_one_reading_has_read_again_serves_the_others(self, tmp_path: Path, small_blocks: None) -> None:
        writer = begin(tmp_path / "a.zarr")
        go_on(writer, 0, 4)
        writer.close()
        store = Location.of(tmp_path / "a.zarr").open().store
        writer, _ = EnsembleWriter.resume(tmp_path / "a.zarr", queue_blocks=1)
        go_on(writer, 4)
        writer.close()
        keys = [f"posterior/image/c.{chain}.1.0.0.0" for chain in (0, 1)]

        async def overlapping() -> list[Buffer | None]:
            fetch, first_is_done, held = store._fetch, asyncio.Event(), []

            async def fetched(key: str, *args: Any, **options: Any) -> Buffer | None:
                value = await fetch(key, *args, **options)
                if key == keys[1] and not held:
                    held.append(key)
                    await first_is_done.wait()
                return value

            with mock.patch.object(store, "_fetch", fetched):
                second = asyncio.ensure_future(store.get(keys[1]))
                while not held:  # it has looked up which checksums to accept before the first reads them again
                    await asyncio.sleep(0)
                first = await store.get(keys[0])
                first_is_done.set()
                return [first, await second]

        found = sync(overlapping())
        for key, value in zip(keys, found, strict=True):
            assert value is not None
            assert value.to_bytes() == (tmp_path / "a.zarr" / key).read_bytes()

    def test_ranks_keep_tables_of_their_own(self, tmp_path: Path, small_blocks: None) -> None:
        path = tmp_path / "a.zarr"
        create = begin(path, num_ranks=2)
        roots = [Location.of(path).open(writable=True, rank=rank) for rank in range(2)]
        del create
        for chain in (0, 1):  # turn about: neither must lose what the other recorded
            for block in (0, 1):
                draws = slice(3 * block, 3 * block + 3)
                root = roots[chain]
                root["posterior/image"][chain, draws] = IMAGES[chain, draws].numpy()
                sync(root.store.flush())
        stored = Location.of(path).open()["posterior/image"]
        np.testing.assert_array_equal(stored[:], IMAGES)
        with pytest.raises(StoreError, match="rank 2 writes to a store of 2 ranks"):
            Location.of(path).open(writable=True, rank=2)


class TestChecksums:
    @given(arrays.arrays(np.uint8, st.integers(0, 200)))
    def test_the_checksum_is_crc32c(self, raw: Any) -> None:
        want = 0xFFFFFFFF
        for byte in raw.tolist():  # the definition, bit by bit, with the reflected polynomial of Castagnoli
            want ^= byte
            for _ in range(8):
                want = want >> 1 ^ (0x82F63B78 if want & 1 else 0)
        assert checksums.chunk_checksum(raw) == ((want ^ 0xFFFFFFFF) or 1)
        assert checksums.chunk_checksum(b"123456789") == 0xE3069283

    @given(arrays.arrays(np.uint32, st.tuples(st.integers(0, 9), st.just(2))), st.data())
    def test_a_table_is_read_back_or_refused(self, table: Any, data: st.DataObject) -> None:
        packed = checksums.pack_table(table)
        np.testing.assert_array_equal(checksums.unpack_table(packed, len(table), "a"), table)
        place = data.draw(st.integers(0, len(packed) - 1))
        damaged = packed[:place] + bytes([packed[place] ^ data.draw(st.integers(1, 255))]) + packed[place + 1 :]
        for bad in (damaged, packed[:-1], packed + b"\0", None):
            with pytest.raises(StoreError, match=r"a: .*(damaged|cut short)"):
                checksums.unpack_table(bad, len(table), "a")

    @given(
        st.dictionaries(st.text(max_size=9), st.tuples(st.integers(1, 2**32 - 1))),
        st.dictionaries(st.text("abc/", max_size=9), st.tuples(st.integers(1, 3), st.integers(1, 3))),
        st.data(),
    )
    def test_a_manifest_is_read_back_or_refused(self, files: Any, grids: Any, data: st.DataObject) -> None:
        document = {"attributes": {"a": 1}, "node_type": "group"}
        sizes = {key: 7 for key in files}
        manifest = checksums.Manifest(document, files, sizes, grids, {path: 8 for path in grids}, 2)
        packed = manifest.packed()
        assert checksums.Manifest.parsed(packed, "a") == manifest
        place = data.draw(st.integers(0, len(packed) - 1))
        damaged = packed[:place] + bytes([packed[place] ^ (1 << data.draw(st.integers(0, 6)))]) + packed[place + 1 :]
        try:
            found = checksums.Manifest.parsed(damaged, "a")
        except StoreError:
            return
        # white space may change, and the entry may go by another name: then there are no checksums
        assert found is None or found == manifest

    def test_zarr_itself_reads_the_tables(self, tmp_path: Path, small_blocks: None) -> None:
        go_on(begin(tmp_path / "a.zarr"), 0)
        table = zarr.open_group(tmp_path / "a.zarr", mode="r")["writer/checksums"]
        chunk = (tmp_path / "a.zarr/posterior/image/c.1.1.0.0.0").read_bytes()
        assert google_crc32c.value(chunk) in table[0, :, 0].tolist()

    def test_what_is_not_recorded_does_not_exist(self, tmp_path: Path, small_blocks: None) -> None:
        path = tmp_path / "a.zarr"
        begin(path)
        EnsembleWriter.resume(path, queue_blocks=1)
        shutil.copytree(path / "posterior_summary/mean", path / "posterior_summary/copy")
        shutil.copytree(path / "sample_stats", path / "other")
        store = Location.of(path).open()
        assert "copy" not in store["posterior_summary"]
        assert "other" not in store
        assert "mean" in store["posterior_summary"]
        (path / "posterior/image").mkdir(exist_ok=True)
        (path / "posterior/image/c.0.0.0.0.0").write_bytes(b"\0" * 144)  # never committed
        assert bool(np.isnan(store["posterior/image"][0]).all())

    def test_parts_of_a_file_are_checked_as_a_whole_once(self, tmp_path: Path, small_blocks: None) -> None:
        go_on(begin(tmp_path / "a.zarr"), 0)
        key, prototype = "posterior/image/c.0.0.0.0.0", default_buffer_prototype()
        file = tmp_path / "a.zarr" / key
        raw = file.read_bytes()
        store = Location.of(tmp_path / "a.zarr").open().store
        for part, want in (
            (RangeByteRequest(4, 12), raw[4:12]),
            (RangeByteRequest(4, 12), raw[4:12]),
            (OffsetByteRequest(100), raw[100:]),
            (SuffixByteRequest(7), raw[-7:]),
        ):
            assert sync(store.get(key, prototype, part)).to_bytes() == want
        file.write_bytes(raw[:-1] + bytes([raw[-1] ^ 1]))
        fresh = Location.of(tmp_path / "a.zarr").open().store
        with pytest.raises(StoreError, match="is damaged"):
            sync(fresh.get(key, prototype, RangeByteRequest(4, 12)))

    def test_verify_reads_everything(self, tmp_path: Path, small_blocks: None) -> None:
        path = tmp_path / "a.zarr"
        writer = begin(path)
        go_on(writer, 0)
        writer.close()
        count = Location.of(path).verify()
        files = [p for p in path.rglob("*") if p.is_file() and "checksums" not in p.parts]
        assert count == len(files)
        for file in files:
            raw = file.read_bytes()
            file.write_bytes(raw[:-1] + bytes([raw[-1] ^ 2]))
            with pytest.raises(StoreError, match=r"a\.zarr: "):
                Location.of(path).verify()
            file.write_bytes(raw)
        assert Location.of(path).verify() == count

    def test_together_counts_all_at_once_or_not_at_all(self, tmp_path: Path, small_blocks: None) -> None:
        location = Location.of(tmp_path / "a.zarr")
        begin(tmp_path / "a.zarr")
        with location.together("more") as root:
            made = root.create_group("more")
            made.create_array("a", data=np.arange(3))
            assert "more" not in location.open()
            np.testing.assert_array_equal(root["more/a"][:], np.arange(3))
        np.testing.assert_array_equal(location.open()["more/a"][:], np.arange(3))
        with pytest.raises(KeyError), location.together("less") as root:
            root.create_group("less")["what is not there"]
        assert "less" not in location.open()
        with location.together("gone") as root:
            del root["more"]
        assert "more" not in location.open()

    def test_durable_files_reach_the_disk_before_the_next_is_written(self, tmp_path: Path, small_blocks: None) -> None:
        begin(tmp_path / "a.zarr")
        events: list[tuple[str, str]] = []
        put, to_disk = RegularFiles.set, checked.sync_to_disk

        async def noted(self: RegularFiles, key: str, value: Buffer) -> None:
            events.append(("write", key))
            await put(self, key, value)

        def synced(path: Path) -> None:
            events.append(("sync", path.relative_to(tmp_path / "a.zarr").as_posix()))
            to_disk(path)

        with mock.patch.object(RegularFiles, "set", noted), mock.patch.object(checked, "sync_to_disk", synced):
            root = Location.of(tmp_path / "a.zarr").open(writable=True, durable=True)
            root["posterior/image"][0, :3] = IMAGES[0, :3].numpy()
            root["writer/n_committed"][:] = 3
        names = [key for what, key in events if what == "write"]
        assert names[0] == "posterior/image/c.0.0.0.0.0"
        assert names[1:] == ["writer/checksums/c.0.0.0", "writer/n_committed/c.0"]
        assert events == [(what, key) for key in names for what in ("write", "sync")]


class TestMetadata:
    """Sizes out of all proportion, in metadata whose checksums were made to fit: what reads them has to refuse."""

    @pytest.mark.parametrize(
        "change",
        [
            lambda t: t.update(shape=[2, 10**12, *EVENT]),
            lambda t: t.update(shape=[10**12, 6, *EVENT]),
            lambda t: t["chunk_grid"]["configuration"].update(chunk_shape=[1, 10**9, *EVENT]),
            lambda t: t.update(data_type="float64"),
        ],
    )
    def test_images_of_another_size(
        self, tmp_path: Path, small_blocks: None, change: Callable[[dict[str, Any]], None]
    ) -> None:
        path = tmp_path / "a.zarr"
        go_on(begin(path), 0)
        file = path / "posterior/image/zarr.json"
        document = json.loads(file.read_text())
        change(document)
        raw = json.dumps(document).encode()
        file.write_bytes(raw)
        with pytest.raises(StoreError, match=r"posterior/image/zarr\.json is damaged"):
            open_ensemble(path)
        whole = checksums.Manifest.parsed((path / checksums.MANIFEST).read_bytes(), "a")
        assert whole is not None
        whole.record("posterior/image/zarr.json", (checksums.chunk_checksum(raw),), len(raw))
        (path / checksums.MANIFEST).write_bytes(whole.packed())
        with pytest.raises(StoreError, match=r"a\.zarr: "):
            open_ensemble(path)

    def test_special_files_are_not_waited_for(self, tmp_path: Path, small_blocks: None) -> None:
        path = tmp_path / "a.zarr"
        go_on(begin(path), 0)
        for key in (checksums.MANIFEST, "posterior/image/zarr.json", "writer/checksums/c.0.0.0", "zarr.json"):
            raw = (path / key).read_bytes()
            (path / key).unlink()
            os.mkfifo(path / key)
            with pytest.raises(StoreError, match=r"a\.zarr: .*(no regular file|no zarr\.json)"):
                open_ensemble(path)
            (path / key).unlink()
            (path / key).write_bytes(raw)
        assert torch.equal(open_ensemble(path).samples(), IMAGES)
