"""The README's code runs as it stands."""

import re
from pathlib import Path

import pytest

README = Path(__file__).parent.parent / "README.md"


def test_the_code_in_the_readme_runs(capsys: pytest.CaptureFixture[str]) -> None:
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(), flags=re.DOTALL)
    assert len(blocks) == 1
    assert len([line for line in blocks[0].splitlines() if line.strip()]) <= 20
    scope: dict[str, object] = {}
    exec(compile(blocks[0], str(README), "exec"), scope)
    told = capsys.readouterr().out
    assert "TotalVariation" in told
    # 32 samples of 1,024 pixels that are correlated: far from 0.9 would mean that something is broken.
    assert 0.8 < float(told.split(" in ")[-1].split(" of ")[0]) < 1.0


def test_every_name_in_the_table_exists() -> None:
    import potentia as pt

    for room in ("energies", "likelihoods", "annealers", "inference"):
        row = re.search(rf"^\| `{room}` \| (.*) \|$", README.read_text(), flags=re.MULTILINE)
        assert row
        for name in re.findall(r"`(\w+)`", row.group(1)):
            assert name in getattr(pt, room).__all__
