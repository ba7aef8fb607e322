"""The headline table: every committed result has its rows, and what is missing is said."""

import argparse
from pathlib import Path

import pytest

from geomag_edge.benchmarks import headline


def test_every_part_of_the_committed_table_comes_from_a_committed_result():
    table = headline.as_markdown(headline.RESULTS)
    assert table == (headline.RESULTS / "headline.md").read_text()
    assert "not measured" not in table
    for part in headline.PARTS:
        assert f"\n- {part}: `" in table


def test_a_part_that_was_never_measured_is_said(tmp_path):
    table = headline.as_markdown(tmp_path)
    assert table.count("not measured") == len(headline.PARTS)


def test_parts_are_run_on_their_own_bundle(tmp_path):
    args = argparse.Namespace(
        base=Path("b"), nano=Path("n"), checkpoint=None, scenes=Path("s"), genai_python="python",
        threads=1, results=tmp_path,
    )  # fmt: skip
    for part, (kind, module, _, _) in headline.PARTS.items():
        command = headline._command(part, args)
        assert {"base": "b", "nano": "n"}[kind] in command
        assert any(module in word for word in command)
    with pytest.raises(SystemExit, match="unknown part"):
        headline._command("nothing", args)
    args.nano = None
    with pytest.raises(SystemExit, match="needs --nano"):
        headline._command("tiling", args)
