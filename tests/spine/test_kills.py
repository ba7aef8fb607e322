"""A folder, a file, a part of a bundle: old or new after a kill at any event, no litter after."""

import errno
import itertools
import os
import shutil

import pytest

from geomag_edge.disk import owners, pending, staging
from geomag_edge.disk.amend import amended
from geomag_edge.disk.staging import found_again, staged_folder, write_whole
from geomag_edge.manifest import Bundle

from ..fuzz.events import ENDED, FAILED, ended_at, kill
from .test_amend import INT8, add_int8
from .test_manifest import data, golden  # noqa: F401

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")

OLD, NEW = "old", "new"


def interrupt():
    raise KeyboardInterrupt


def broken_disk():
    raise OSError(errno.EIO, "Input/output error")


ENDS = {"kill": kill, "Ctrl-C": interrupt, "broken disk": broken_disk}


@pytest.fixture(params=["one step", "two steps", "nothing but renames"])
def disk(request, monkeypatch):
    """What a file system can do: exchange two folders, lock, say that data is on the disk."""
    monkeypatch.setattr(os, "fsync", lambda handle: None)  # as the event it is, but without waiting

    def refused(*args, **kwargs):
        raise OSError(errno.EOPNOTSUPP, "Operation not supported")

    if request.param != "one step":
        monkeypatch.setattr(staging, "_renameat2", lambda: None)
    if request.param == "nothing but renames":
        monkeypatch.setattr(owners.fcntl, "flock", refused)
        for name in ("fsync", "chmod", "link", "symlink"):
            monkeypatch.setattr(os, name, refused)


def everywhere(place, prepare, work, check, end=kill):
    """Ends the work before every one of its events; the state is `check`ed, then it is done whole.

    `check` returns OLD or NEW, or fails. Returns all that was seen.
    """
    seen = []
    place.mkdir()
    prepare()
    ready = [(p.relative_to(place), p.read_bytes()) for p in place.rglob("*") if p.is_file()]
    for event in itertools.count(1):
        shutil.rmtree(place)
        for name, content in ready:
            (place / name).parent.mkdir(parents=True, exist_ok=True)
            (place / name).write_bytes(content)
        how = ended_at(event, place, work, end)
        assert how != FAILED, event
        seen.append(check())
        work()
        assert check() == NEW, event
        hidden = [str(p) for p in place.rglob(".*")]
        assert hidden == [], event
        if how == ENDED:
            assert seen[-1] == NEW
            return seen


def only(folder):
    [name] = os.listdir(folder)
    return name


@pytest.mark.parametrize("end", ENDS)
def test_a_folder_is_old_or_new(tmp_path, disk, end):
    out = tmp_path / "place" / "out"

    def write(what=NEW):
        with staged_folder(out, force=True) as stage:
            (stage / what).mkdir()
            (stage / what / "file").write_text(what)

    def check():
        name = only(found_again(out))
        assert (out / name / "file").read_text() == name
        return name

    seen = everywhere(tmp_path / "place", lambda: write(OLD), write, check, ENDS[end])
    assert {*seen} == {OLD, NEW}
    assert len(seen) >= 6


@pytest.mark.parametrize("end", ENDS)
def test_a_file_is_old_or_new(tmp_path, disk, end):
    path = tmp_path / "place" / "report.json"
    seen = everywhere(
        tmp_path / "place", lambda: write_whole(path, OLD), lambda: write_whole(path, NEW),
        path.read_text, ENDS[end],
    )  # fmt: skip
    assert {*seen} == {OLD, NEW}


def int8_of(root):
    """What the bundle's int8 graph holds, as a reader of the bundle finds it."""
    bundle = Bundle.open(root)
    assert bundle.graph("encoder", "fp32").is_file()
    if "int8" not in bundle.manifest.graphs:
        assert not any(name.startswith("onnx/int8/") for name in bundle.manifest.files)
        return OLD
    return bundle.graph("encoder", "int8").read_bytes().removeprefix(INT8)[2:].decode()


def int8_with(word):
    """A graph with a `doc_string` to know it by."""
    return INT8 + b"\x32" + bytes([len(word)]) + word.encode()


@pytest.mark.parametrize("disk", ["one step", "nothing but renames"], indirect=True)
@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("earlier", [True, False], ids=["in place of an earlier one", "first"])
def test_a_part_of_a_bundle_is_old_or_new(golden, disk, earlier, end):  # noqa: F811
    place = golden.parent / "place"
    root = place / "bundle"

    def change(what=NEW):
        with amended(Bundle.open(root), "onnx/int8") as change:
            add_int8(change, int8_with(what))

    def prepare():
        golden.rename(root)
        if earlier:
            change(OLD)

    seen = everywhere(place, prepare, change, lambda: int8_of(root), ENDS[end])
    assert {*seen} == {OLD, NEW}
    assert len(seen) >= 6


def test_a_bundle_with_a_committed_change_is_read_where_nothing_may_be_written(
    golden,  # noqa: F811
    monkeypatch,
):
    def change():
        with amended(Bundle.open(golden), "onnx/int8") as change:
            add_int8(change, int8_with("new"))

    def broken(root, go):
        kill()

    def cut():
        monkeypatch.setattr("geomag_edge.disk.amend.finish", broken)
        change()

    assert ended_at(10_000, golden, cut) != FAILED
    assert [p for p in golden.glob(".*")]

    def refused(*args, **kwargs):
        raise OSError(errno.EROFS, "Read-only file system")

    with monkeypatch.context() as patch:
        for name in ("rename", "mkdir", "unlink", "rmdir", "replace"):
            patch.setattr(os, name, refused)
        assert int8_of(golden) == "new"
        assert int8_of(golden) == "new"
    assert int8_of(golden) == "new"
    assert not [p for p in golden.glob(".*")]


def test_a_bundle_that_was_moved_aside_is_found_again(golden, monkeypatch):  # noqa: F811
    aside = golden.parent / owners.name_for(golden.name, "old")
    dead = aside.with_name(aside.name.replace(f"-{os.getpid()}-", "-4194304-"))
    golden.rename(dead)
    with monkeypatch.context() as patch:

        def refused(*args, **kwargs):
            raise OSError(errno.EROFS, "Read-only file system")

        patch.setattr(os, "rename", refused)
        assert Bundle.open(golden).graph("encoder", "fp32").is_file()
    assert not golden.exists()
    assert Bundle.open(golden).root == golden
    assert golden.is_dir()


def test_a_set_that_was_moved_aside_is_found_again(tmp_path):
    from geomag_edge.calibration.sets.folder import FolderSet
    from geomag_edge.errors import DatasetError

    dead = owners.name_for("set", "old").replace(f"-{os.getpid()}-", "-4194304-")
    (tmp_path / dead).mkdir()
    with pytest.raises(DatasetError, match="has no questions"):
        FolderSet.open(tmp_path / "set")
    assert os.listdir(tmp_path) == ["set"]


def test_a_living_commands_work_is_left_alone(tmp_path):
    """Also where there are no locks, and where the other is in another container."""
    with staged_folder(tmp_path / "one") as one:
        (one / "file").touch()
        with staged_folder(tmp_path / "two"):
            pass
        staging.sweep(tmp_path)
        assert (one / "file").exists()
        [left] = owners.left_in(tmp_path, "new")
        for change in ({"space": "another"}, {"kernel": "another"}, {"machine": "another"}):
            assert not owners.Left(**{**vars(left), **change}).abandoned()
    assert sorted(os.listdir(tmp_path)) == ["one", "two"]


@pytest.mark.parametrize("lock", [True, False], ids=["locks", "no locks"])
def test_what_is_known_of_a_writer_that_is_gone(tmp_path, monkeypatch, lock):
    path = tmp_path / owners.name_for("out", "new")
    path.mkdir()
    [left] = owners.left_in(tmp_path)
    if not lock:
        monkeypatch.setattr(owners, "fcntl", None)

    def gone(**change):
        return owners.Left(**{**vars(left), **change}).abandoned()

    assert not gone()
    assert gone(pid=4_194_304)  # above any process id
    assert gone(start=left.start + 1)  # the id has a new owner
    assert gone(space="another") == lock
    assert gone(kernel="before")  # this machine, before it started anew
    assert not gone(kernel="before", machine="another")  # another machine on the same disk
    os.utime(path, (0, 0))
    assert gone(kernel="before", machine="another")


def test_nobody_elses_things_are_cleared_away(tmp_path):
    for name in (".notes.new", ".out.old-1", ".git", ".out.new-abc-1-2-3", "x.new"):
        (tmp_path / name).mkdir()
    (tmp_path / "target").mkdir()
    dead = owners.name_for("out", "new").replace(f"-{os.getpid()}-", "-4194304-")
    (tmp_path / dead).symlink_to(tmp_path / "target")
    before = sorted(os.listdir(tmp_path))
    staging.sweep(tmp_path)
    assert sorted(os.listdir(tmp_path)) == before


def test_a_change_of_a_stranger_moves_nothing_out_of_the_bundle(golden):  # noqa: F811
    victim = golden.parent / "victim"
    victim.mkdir()
    (victim / "thesis.txt").write_text("years of work")
    text = (golden / "bundle.json").read_bytes()
    (golden / "engines").symlink_to(golden.parent)
    for name in ("..%victim", "%", "engines%victim", "onnx%..%..%victim"):
        go = golden / owners.name_for(pending.digest_of(text), pending.KIND)
        dead = go.with_name(go.name.replace(f"-{os.getpid()}-", "-4194304-"))
        (dead / name).mkdir(parents=True)
        Bundle.open(golden)
    assert (victim / "thesis.txt").read_text() == "years of work"


def test_the_longest_name_that_a_file_system_takes_can_be_written(tmp_path, disk):
    out = tmp_path / ("ä" * 127)
    for what in (OLD, NEW):
        with staged_folder(out, force=True) as stage:
            (stage / what).touch()
    assert only(out) == NEW
    aside = tmp_path / owners.name_for(out.name, "old").replace(f"-{os.getpid()}-", "-4194304-")
    out.rename(aside)
    staging.sweep(tmp_path)
    assert only(found_again(out)) == NEW
    assert only(tmp_path) == out.name


def test_a_link_to_a_folder_stays_a_link(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    with staged_folder(tmp_path / "link", force=True) as stage:
        (stage / "new").touch()
    assert os.readlink(tmp_path / "link") == "real"
    assert only(tmp_path / "real") == "new"


def test_opening_a_bundle_clears_away_what_a_killed_change_left(golden):  # noqa: F811
    for name in (owners.name_for("amend", "new"), owners.name_for("0" * 32, pending.KIND)):
        dead = golden / name.replace(f"-{os.getpid()}-", "-4194304-")
        (dead / "onnx%int8").mkdir(parents=True)
    Bundle.open(golden)
    assert not [p for p in golden.glob(".*")]
