"""A folder that is there whole or not at all, whatever ends the writing."""

import errno
import os

import pytest

from geomag_edge.disk import staging
from geomag_edge.disk.staging import staged_folder
from geomag_edge.errors import OutputError
from geomag_edge.runtime.answers.exchange import placed


@pytest.fixture
def old(tmp_path):
    """An earlier result in the place to be written."""
    out = tmp_path / "out"
    out.mkdir()
    (out / "old.txt").write_text("old")
    return out


def names(folder):
    return sorted(p.name for p in folder.iterdir())


def test_a_body_that_ends_well_leaves_its_folder_and_nothing_else(tmp_path):
    with staged_folder(tmp_path / "deep" / "out") as stage:
        (stage / "new.txt").write_text("new")
        assert not (tmp_path / "deep" / "out").exists()
    assert names(tmp_path / "deep") == ["out"]
    assert (tmp_path / "deep" / "out" / "new.txt").read_text() == "new"


def test_the_folder_can_be_entered_by_others_as_any_new_folder(tmp_path):
    with staged_folder(tmp_path / "out"):
        pass
    assert (tmp_path / "out").stat().st_mode & 0o777 == 0o755


@pytest.mark.parametrize(
    ("cause", "seen"),
    [
        (ValueError("bad"), ValueError),
        (KeyboardInterrupt(), KeyboardInterrupt),
        (SystemExit(3), SystemExit),
        (OSError(errno.ENOSPC, "No space left on device"), OutputError),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), OutputError),
        (OSError(errno.EACCES, "Permission denied"), OutputError),
        (OSError(errno.EIO, "Input/output error"), OSError),
    ],
    ids=lambda v: getattr(v, "__name__", repr(v)),
)
def test_whatever_ends_the_body_nothing_is_left_and_the_old_folder_is_intact(old, cause, seen):
    def write_half():
        with staged_folder(old, force=True) as stage:
            (stage / "half.txt").write_text("half")
            raise cause

    with pytest.raises(seen):
        write_half()
    assert names(old.parent) == ["out"]
    assert (old / "old.txt").read_text() == "old"


@pytest.mark.parametrize("write", [staged_folder, placed])
@pytest.mark.parametrize("there", [(), ("mine",)], ids=["none", "a file"])
def test_folders_on_the_way_go_again_unless_somebody_has_put_a_file_there(tmp_path, write, there):
    with pytest.raises(ValueError, match="stop"), write(tmp_path / "a" / "b" / "out"):  # noqa: PT012
        for name in there:
            (tmp_path / "a" / name).touch()
        raise ValueError("stop")
    assert names(tmp_path) == (["a"] if there else [])
    assert not there or names(tmp_path / "a") == ["mine"]


def test_a_full_disk_is_said_in_words(tmp_path):
    full = OSError(errno.ENOSPC, "No space left on device")
    refused = pytest.raises(OutputError, match="the disk is full: nothing was written to")
    with refused, staged_folder(tmp_path / "out"):
        raise full
    assert names(tmp_path) == []


def test_force_replaces_the_old_folder_whole(old):
    with staged_folder(old, force=True) as stage:
        (stage / "new.txt").write_text("new")
    assert names(old) == ["new.txt"]
    assert names(old.parent) == ["out"]


@pytest.mark.parametrize("rename", [1, 2], ids=["moving the old away", "moving the new in"])
@pytest.mark.parametrize("cause", [KeyboardInterrupt(), OSError(errno.EIO, "I/O error")])
def test_an_interrupt_between_the_two_renames_keeps_the_old_folder(old, monkeypatch, rename, cause):
    """Where a file system cannot exchange two folders in one step."""
    calls, real = [], os.rename

    def broken(source, target):
        calls.append(target)
        if len(calls) == rename:
            raise cause
        return real(source, target)

    def write():
        with staged_folder(old, force=True) as stage:
            (stage / "new.txt").write_text("new")
            monkeypatch.setattr(staging, "exchange", lambda one, other: False)
            monkeypatch.setattr(os, "rename", broken)

    with pytest.raises(type(cause)):
        write()
    assert names(old) == ["old.txt"]
    assert names(old.parent) == ["out"]


def test_without_force_an_existing_folder_is_refused_before_the_body_runs(old):
    with pytest.raises(OutputError, match="--force"), staged_folder(old):
        pytest.fail("the body must not run")


@pytest.mark.parametrize("force", [False, True])
def test_a_file_in_the_way_is_refused_and_kept(tmp_path, force):
    (tmp_path / "out").write_text("mine")
    with pytest.raises(OutputError), staged_folder(tmp_path / "out", force):
        pytest.fail("the body must not run")
    assert (tmp_path / "out").read_text() == "mine"


def test_a_parent_that_is_a_file_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot write"), staged_folder(tmp_path / "file" / "out"):
        pytest.fail("the body must not run")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_parent_without_write_permission_is_refused(tmp_path):
    tmp_path.chmod(0o555)
    with pytest.raises(OutputError, match="cannot write"), staged_folder(tmp_path / "out"):
        pytest.fail("the body must not run")


def test_force_replaces_nobody_elses_folder(tmp_path):
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "thesis.txt").write_text("years of work")
    refused = pytest.raises(OutputError, match="not an earlier output")
    with refused, staged_folder(precious, force=True, marker="bundle.json"):
        pass
    assert (precious / "thesis.txt").read_text() == "years of work"


def test_force_replaces_an_earlier_output_and_an_empty_folder(tmp_path):
    for name in ("earlier", "empty"):
        out = tmp_path / name
        out.mkdir()
        if name == "earlier":
            (out / "bundle.json").touch()
        with staged_folder(out, force=True, marker="bundle.json") as stage:
            (stage / "new").touch()
        assert [p.name for p in out.iterdir()] == ["new"]


@pytest.mark.parametrize("inside", [".", "deep/down"])
def test_an_output_never_swallows_its_own_input(tmp_path, inside):
    out = tmp_path / "out"
    source = out / inside
    source.mkdir(parents=True)
    (out / "config.json").touch()
    refused = pytest.raises(OutputError, match="holds the input")
    with refused, staged_folder(out, force=True, marker="config.json", inputs=[source]):
        pass
    assert source.is_dir()
