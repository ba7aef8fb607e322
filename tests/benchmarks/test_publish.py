"""What every benchmark's script shares: its arguments, its page, and its files."""

import json
from pathlib import Path

import pytest

from geomag_edge.benchmarks.arguments import REQUIRED, parser_of
from geomag_edge.benchmarks.publish import (
    RESULTS,
    interval,
    page_of,
    publish,
    results_of,
    stage_table,
    table_of,
)


def test_a_script_has_the_arguments_it_names(capsys):
    parser = parser_of("What it does.", bundle=REQUIRED, name="nano", rounds=9, precision=None)
    args = parser.parse_args(["--bundle", "b", "--rounds", "3"])
    assert (args.bundle.name, args.name, args.rounds) == ("b", "nano", 3)
    assert (args.precision, args.results) == (None, RESULTS)
    with pytest.raises(SystemExit):
        parser.parse_args([])
    assert "--bundle" in capsys.readouterr().err
    assert "What it does." in parser.format_help()


def test_a_page_has_its_command_and_its_tables():
    table = table_of("| ms | goal", [("encode", f"{1.25:.1f}", "-"), ("decode", 3, "2x")])
    assert page_of("Title", {"command": "python -m x"}, "Said.", table) == (
        "# Title\n\n`python -m x`\n\nSaid.\n\n"
        "| | ms | goal |\n|---|---|---|\n| encode | 1.2 | - |\n| decode | 3 | 2x |\n"
    )


def test_a_table_of_stages_has_a_column_a_form():
    assert stage_table({"ours": {"read": 1, "mask": 2.04}, "eager": {"read": 3, "mask": 4}}) == (
        "| stage, ms | ours | eager |\n|---|---|---|\n| read | 1.0 | 3.0 |\n| mask | 2.0 | 4.0 |"
    )
    assert interval({"ratio": 2.0, "low": 1.5, "high": 2.514}) == "2.00x (1.50-2.51)"


def test_a_result_without_a_page_is_a_json_alone(tmp_path, capsys):
    publish({"ms": 1}, None, tmp_path / "new", "speed")
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["speed.json"]
    publish({"ms": 2}, "# Page\n", tmp_path / "new", "speed")
    assert (tmp_path / "new" / "speed.md").read_text() == "# Page\n"
    said = capsys.readouterr().out.splitlines()
    assert [json.loads(line) for line in said] == [{"ms": 1}, {"ms": 2}]


def test_a_checkouts_results_are_committed():
    root = Path(__file__).parents[2]
    assert RESULTS.resolve() == (root / "benchmarks" / "results").resolve()


def test_an_installed_package_is_not_written_into(tmp_path, monkeypatch, capsys):
    installed = tmp_path / "site-packages" / "geomag_edge" / "benchmarks"
    (installed / "results").mkdir(parents=True)  # as an earlier version left it
    folder = results_of(installed)
    assert not folder.is_absolute()
    monkeypatch.chdir(tmp_path)
    publish({"x": 1}, None, folder, "name")
    assert (tmp_path / "geomag_edge_results" / "name.json").is_file()
    assert list(installed.rglob("*.json")) == []
