"""Any value for any argument of any command: accepted or refused in one line, without work.

Where a value is good, the command fails all the same, soon and in its own line: its bundle,
checkpoint or set is not there.
"""

import argparse

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from geomag_edge.cli.parser import build_parser
from geomag_edge.printing import one_line

SUBPARSERS = build_parser()._subparsers._group_actions[0].choices
ACTIONS = [
    (name, action)
    for name, parser in SUBPARSERS.items()
    for action in parser._actions
    if not isinstance(action, argparse._HelpAction)
]
NAMES = [f"{name} {'/'.join(a.option_strings) or a.dest}" for name, a in ACTIONS]
WORKING = {"quickstart", "doctor", "targets", "scenes"}
"""Commands that would begin to work for want of anything that is not there."""

VALUES = st.one_of(
    st.sampled_from(
        [
            "", "0", "-1", "1", "2147483648", "9" * 25, "-" + "9" * 25, "7" * 5000, "nan", "inf",
            "-inf", "1e309", "1e-320", "0x10", "1_0", "\u0661", " 3 ", "3.5", "True", "None",
            "[SEG]" * 2000, "x" * 100_000, "a b " * 25_000, "\x1b[31mred", "\u202egnp", "\0",
            "\udcff", "\ud800", "%s%d%(prog)s", "{0}", "--", "-", "-x", "--json", "@file", "..",
            "/" + "n" * 300, "/" * 5000, "/proc/self/mem", "/dev/null", "scenes:", "scenes:-1:0",
            "scenes:1:1:1", "scenes:9999999999999:1", "1,2,3", "nan,inf", ",", "200t", "4+4x4",
            "999999999999+9x9", "image", "~", "a\nb", "\u2028",
        ]
    ),
    st.text(st.characters(), max_size=30),
    st.integers().map(str),
    st.floats().map(str),
)  # fmt: skip


def words_of(name, action, value, absent):
    """A command line that is right but for one value, and for all that it names being absent."""
    words = [name]
    for other in SUBPARSERS[name]._actions:
        if other is not action and other.required:
            word = other.choices[0] if other.choices else absent
            words += [*other.option_strings[-1:], word]
    if not action.option_strings:
        return [*words, value]
    if isinstance(action.nargs, int) and action.nargs > 0:
        return [*words, action.option_strings[-1], *[value] * action.nargs]
    return [*words, f"{action.option_strings[-1]}={value}"]


@pytest.mark.parametrize(("name", "action"), ACTIONS, ids=NAMES)
@settings(
    max_examples=8,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)  # fmt: skip
@given(value=VALUES)
def test_any_value_is_refused_in_one_line(command, tmp_path, monkeypatch, name, action, value):
    monkeypatch.chdir(tmp_path)
    if name in WORKING:
        monkeypatch.setattr(f"geomag_edge.cli.commands.{name}.execute", lambda args: 2)
    code, _, err = command(*words_of(name, action, value, str(tmp_path / "absent")))
    assert code == 2, err or value
    if name in WORKING and not err:
        return
    lines = err.splitlines()
    assert all(line == one_line(line) for line in lines)
    assert ["error: " in line for line in lines].count(True) == 1, err
    assert "error: " in lines[-1]
    assert "internal" not in err
    assert not any(found.is_file() for found in tmp_path.rglob("*"))
