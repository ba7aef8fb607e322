"""The headline table: every committed result has its rows, and what is missing is said."""

import argparse
import shutil
from pathlib import Path

import pytest

from geomag_edge.benchmarks import headline
from geomag_edge.benchmarks.publish import RESULTS


def test_every_part_of_the_committed_table_comes_from_a_committed_result():
    table = headline.as_markdown(RESULTS)
    assert table == (RESULTS / "headline.md").read_text()
    assert "not measured" not in table
    for part in headline.PARTS:
        assert f"\n- {part}: `" in table


def test_a_part_that_was_never_measured_is_said(tmp_path):
    table = headline.as_markdown(tmp_path)
    assert table.count("not measured") == len(headline.PARTS)


def test_a_part_that_failed_is_said_to_be_of_an_earlier_run():
    table = headline.as_markdown(RESULTS, ["decode"])
    marked = [line for line in table.splitlines() if line.endswith("of an earlier run**")]
    assert len(marked) == 1
    assert marked[0].startswith("- decode:")


@pytest.fixture
def args(tmp_path):
    return argparse.Namespace(
        base=Path("b"), nano=Path("n"), checkpoint=None, work=tmp_path, genai_python="genai",
        optimum_python="optimum", threads=1, results=tmp_path,
    )  # fmt: skip


@pytest.fixture
def commands(monkeypatch, bundle):
    """The `geomag-edge` commands that were asked for; an export leaves a bundle."""
    asked = []

    def note(*words):
        asked.append(words[0])
        if words[0] == "export":
            shutil.copytree(bundle, words[-1])

    monkeypatch.setattr(headline, "_cli", note)
    return asked


def test_parts_are_run_on_their_own_bundle(args):
    for part, (kind, module, _, _) in headline.PARTS.items():
        command = headline._command(part, args)
        assert {"base": "b", "nano": "n"}[kind] in command
        assert any(module in word for word in command)


def test_what_is_measured_is_made_first(args, commands, tmp_path):
    args.base = args.nano = None
    headline.prepare(args, ["query", "tiling"])
    assert (args.base, args.nano) == (tmp_path / "base", tmp_path / "nano")
    base = ["compose", "export", "calibrate", "quantize", "quantize"]
    nano = ["export", "calibrate", "quantize", "plan"]
    assert commands == base + nano


def test_a_bundle_that_is_named_or_there_is_taken_as_it_is(args, commands, bundle, tmp_path):
    headline.prepare(args, ["query", "tiling"])
    assert commands == []
    args.nano = None
    shutil.copytree(bundle, tmp_path / "nano")
    headline.prepare(args, ["tiling"])
    assert commands == ["calibrate", "quantize", "plan"]


def test_the_table_alone_needs_no_folder(args, commands):
    args.work = args.base = args.nano = None
    headline.prepare(args, [])
    assert commands == []
    with pytest.raises(SystemExit, match="give --work"):
        headline.prepare(args, ["tiling"])
    with pytest.raises(SystemExit, match="unknown part 'nothing'"):
        headline.prepare(args, ["nothing"])


def test_another_machines_results_have_a_table_of_their_own(tmp_path):
    other = tmp_path / "laptop"
    other.mkdir()
    shutil.copy(RESULTS / "deadlines_nano.json", other)
    table = headline.as_markdown(tmp_path)
    own, _, others = table.partition("## Another machine: laptop")
    assert own.count("not measured") == len(headline.PARTS)
    assert "queries within 2x" in others
    assert "not measured" not in others
