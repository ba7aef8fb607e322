"""Whatever is typed, raised or printed: one printable line on stderr and the right exit code."""

import errno
import json
import os
import subprocess
import sys

import pytest

from geomag_edge.printing import LINE_CHARS, one_line, printable


def geomag_edge(*argv, **settings):
    """Runs a command as a user does, its words as bytes or text."""
    environment = os.environ | settings.pop("env", {})
    settings.setdefault("stdout", subprocess.PIPE)
    return subprocess.run(
        [sys.executable, "-m", "geomag_edge", *argv], stderr=subprocess.PIPE, env=environment,
        timeout=120, **settings,
    )  # fmt: skip


def assert_one_line(err):
    text = err.decode() if isinstance(err, bytes) else err
    assert text.endswith("\n")
    assert len(text.splitlines()) == 1, text
    assert len(text) <= LINE_CHARS + 1
    assert text[:-1] == one_line(text)
    assert "Error" not in text
    assert "error:" in text


class Panic(BaseException):
    """As Rust's, which are no `Exception`."""


def deep():
    return deep()


def raises(error):
    def open_bundle(path, trust=None):
        raise error

    return open_bundle


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (Panic("internal"), 1),
        (Exception("of \x1b[1mtokenizers"), 1),
        (MemoryError(), 2),
        (RecursionError(), 2),
        (PermissionError(errno.EACCES, "", "tokenizer.json"), 2),
        (OSError(errno.EROFS, "", "x" * 4000), 2),
        (ValueError("embedded null byte"), 2),
        (UnicodeEncodeError("utf-8", "\udcff", 0, 1, "surrogates not allowed"), 2),
    ],
    ids=lambda value: type(value).__name__,
)
def test_whatever_a_command_raises_is_one_line(command, monkeypatch, error, code):
    from geomag_edge.manifest import Bundle

    monkeypatch.setattr(Bundle, "open", raises(error))
    found, out, err = command("inspect", "bundle")
    assert (found, out) == (code, "")
    assert_one_line(err)
    assert err.startswith("geomag-edge inspect: error: ")


def test_debug_shows_where_it_came_from(command, monkeypatch):
    from geomag_edge.manifest import Bundle

    monkeypatch.setattr(Bundle, "open", raises(Panic("deep \x1b[1minside")))
    code, _, err = command("inspect", "bundle", "--debug")
    assert code == 1
    assert "Traceback" in err
    assert "\x1b" not in err


def test_libraries_say_nothing_of_their_own(bundle):
    code = (
        "import logging, os, sys, warnings\n"
        "from geomag_edge.manifest import Bundle\n"
        "from geomag_edge.cli import main\n"
        "opened = Bundle.open\n"
        "def noisy(path, trust):\n"
        "    warnings.warn('overflow encountered', RuntimeWarning)\n"
        "    logging.getLogger('library').error('CPLE')\n"
        "    os.write(2, b'thread panicked\\n')\n"
        "    print('on stdout')\n"
        "    sys.stderr.write('and here')\n"
        "    return opened(path, trust)\n"
        "Bundle.open = noisy\n"
        "sys.argv[1:] = ['inspect', sys.argv[1], '--json', *sys.argv[2:]]\n"
        "sys.exit(main())\n"
    )
    quiet = subprocess.run([sys.executable, "-c", code, bundle], capture_output=True, timeout=120)
    assert (quiet.returncode, quiet.stderr) == (0, b"")
    json.loads(quiet.stdout)
    loud = subprocess.run(
        [sys.executable, "-c", code, bundle, "--debug"], capture_output=True, timeout=120
    )
    assert b"panicked" in loud.stderr


@pytest.mark.parametrize(
    "env",
    [
        {"PYTHONIOENCODING": "ascii"},
        {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"},
    ],
    ids=["ascii streams", "ascii system"],
)
def test_a_terminal_of_ascii_works(bundle, picture, tmp_path, env):
    out = tmp_path / "Häfen 港口"
    done = geomag_edge(
        "run", bundle, picture, "Cádiz порт 港口", "-o", out, "--max-new-tokens", "1",
        "--answer-prefix", "é 港", env=env,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, b"")
    done.stdout.decode("ascii")
    answer = json.loads((out / "answer.json").read_text("utf-8"))
    assert answer["prompt"] == "Cádiz порт 港口"


def test_words_that_are_no_utf8_are_refused_and_names_are_not(bundle, picture, tmp_path):
    name = os.fsencode(tmp_path) + b"/sc\xe9ne \x1b[31m.png"
    with open(name, "wb") as file:
        file.write(picture.read_bytes())
    few = ("--max-new-tokens", "1")
    done = geomag_edge("run", bundle, name, "ships", "-o", name + b".d", "--json", *few)
    assert (done.returncode, done.stderr) == (0, b"")
    json.loads(done.stdout.decode("ascii"))
    assert os.path.exists(name + b".d/answer.json")
    done = geomag_edge("run", bundle, name, "ships", "-o", name + b".e", *few)
    assert b"\\xe9ne \\x1b[31m" in done.stdout
    for words in ([b"sh\xe9ps"], ["ships", "--answer-prefix", b"\xe9"], ["a", "--budget", b"\xe9"],
                  ["a", "--precision", b"\xe9\x1b"], ["a", "--engine", b"\xff\x07"]):  # fmt: skip
        done = geomag_edge("run", bundle, name, *words, *few)
        assert done.returncode == 2
        assert_one_line(done.stderr)


@pytest.mark.parametrize("words", [["inspect", "{bundle}"], ["--help"], ["targets", "--json"]])
def test_a_device_that_is_full_is_an_error_and_a_reader_who_left_is_none(bundle, words):
    words = [word.format(bundle=bundle) for word in words]
    with open("/dev/full", "wb") as full:
        done = geomag_edge(*words, stdout=full)
    assert done.returncode == 2
    assert_one_line(done.stderr)
    reads, writes = os.pipe()
    os.close(reads)
    try:
        done = geomag_edge(*words, stdout=writes)
    finally:
        os.close(writes)
    assert (done.returncode, done.stderr) == (141, b"")


@pytest.mark.parametrize("closed", [1, 2])
def test_a_closed_stream_harms_nobody(bundle, tmp_path, closed):
    script = f'exec "$0" -m geomag_edge inspect "$1" {closed}>&-'
    done = subprocess.run(
        ["sh", "-c", script, sys.executable, bundle], capture_output=True, timeout=120
    )
    assert (done.returncode, done.stderr) == (0, b"")


def test_what_a_bundle_says_of_itself_acts_on_no_terminal(command, bundle_copy, picture):
    path = bundle_copy / "bundle.json"
    manifest = json.loads(path.read_text())
    manifest["created_by"] = "us\x1b[31m\nbundle  all sha256 good\u2028"
    manifest["untrained"] = ["\x1b]0;title\x07", "\u202edeniart", "\u009b31m"]
    path.write_text(json.dumps(manifest))
    for words in (["inspect", bundle_copy],
                  ["run", bundle_copy, picture, "ships", "--max-new-tokens", 1]):  # fmt: skip
        code, out, _ = command(*words)
        assert code == 0
        assert "\\u202edeniart" in out
        assert all(line == printable(line) for line in out.split("\n"))
    assert not [line for line in out.splitlines() if line.startswith("bundle  all")]
    code, out, _ = command("inspect", bundle_copy, "--json")
    assert out.isascii()
    assert json.loads(out)["created_by"] == manifest["created_by"]
