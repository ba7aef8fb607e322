"""An answer's files appear together, whatever ends the writing, and nobody else's are touched."""

import errno
import itertools
import os
import shutil

import pytest

from geomag_edge.disk import owners, staging
from geomag_edge.runtime.answers.exchange import FILES, is_ours, placed
from tests.fuzz.events import ENDED, FAILED, ended_at, kill

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")

SIDECARS = (
    "masks.tif.aux.xml",
    "masks.tif.ovr",
    "masks.tif.msk",
    "masks.tfw",
    "overlay.png.aux.xml",
)
OTHERS = ("notes.txt", "masks.qml", "masks.tif.bak", "masks.shp", "masks.prj", "scene.tif")


def write(out, what, names=FILES):
    with placed(out) as stage:
        for name in names:
            (stage / name).write_text(what)


def interrupt():
    raise KeyboardInterrupt


def broken_disk():
    raise OSError(errno.EIO, "Input/output error")


WAYS = {
    "one step": {},
    "no exchange": {"exchange": False},
    "no links": {"links": False},
    "a folder inside": {"inside": True},
    "a mount point": {"mount": True},
    "nothing but renames": {"exchange": False, "links": False, "locks": False},
}


@pytest.fixture(params=WAYS)
def way(request, monkeypatch):
    """What a place can do; None where an answer is shown in more than one step."""
    can = WAYS[request.param]

    def refused(*args, **kwargs):
        raise OSError(errno.EOPNOTSUPP, "Operation not supported")

    monkeypatch.setattr(os, "fsync", lambda handle: None)  # the event alone
    if not can.get("exchange", True):
        monkeypatch.setattr(staging, "_renameat2", lambda: None)
    if not can.get("links", True):
        monkeypatch.setattr(os, "link", refused)
        monkeypatch.setattr(os, "chown", refused)
        monkeypatch.setattr(os, "fsync", refused)
    if not can.get("locks", True):
        monkeypatch.setattr(owners.fcntl, "flock", refused)
    if can.get("mount"):
        monkeypatch.setattr(os.path, "ismount", lambda path: os.path.basename(path) == "out")
    return request.param


def state(out):
    """What is there to be read: an answer's one word, or None where no answer.json is."""
    if not (out / "answer.json").exists():
        return None
    ours = [p for p in out.iterdir() if is_ours(p.name) and p.name != "masks.prj"]
    [word] = {p.read_text() for p in ours}
    assert {*FILES} <= {p.name for p in ours}
    assert {*SIDECARS} & {p.name for p in ours} == ({*SIDECARS} if word == "old" else set())
    return word


@pytest.mark.parametrize("end", [kill, interrupt, broken_disk])
def test_an_answer_is_old_or_new(tmp_path, way, end):
    place = tmp_path / "place"
    out = place / "out"
    together = way == "one step"
    for event in itertools.count(1):
        shutil.rmtree(place, ignore_errors=True)
        out.mkdir(parents=True)
        for name in (*FILES, *SIDECARS):
            (out / name).write_text("old")
        for name in OTHERS:
            (out / name).write_text("mine")
        if way == "a folder inside":
            (out / "folder").mkdir()
        how = ended_at(event, place, lambda: write(out, "new"), end)
        assert how != FAILED
        seen = state(out)
        assert seen in ("old", "new") or (end is kill and not together)
        if end is kill and not together:  # whatever the kill left, the next answer begins from one
            before = ended_at(10_000, place, lambda: interrupted_before_writing(out))
            assert before != FAILED
            assert state(out) in ("old", "new")
        write(out, "new")
        assert state(out) == "new"
        assert [str(p) for p in place.rglob(".*")] == []
        assert all((out / name).read_text() == "mine" for name in OTHERS)
        if how == ENDED:
            assert seen == "new"
            return


def interrupted_before_writing(out):
    with pytest.raises(KeyboardInterrupt), placed(out):
        raise KeyboardInterrupt


@pytest.mark.parametrize("end", [kill, interrupt, broken_disk])
def test_a_first_answer_is_there_whole_or_not_at_all(tmp_path, end, monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda handle: None)
    place = tmp_path / "place"
    out = place / "out"
    for event in itertools.count(1):
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir()
        how = ended_at(event, place, lambda: write(out, "new"), end)
        assert not out.exists() or sorted(os.listdir(out)) == sorted(FILES)
        write(out, "new")
        assert sorted(os.listdir(out)) == sorted(FILES)
        assert os.listdir(place) == ["out"]
        if how == ENDED:
            return


def test_what_is_an_answers_and_what_is_not():
    for name in (*FILES, *SIDECARS, "MASKS.TFW", "masks.tif.ovr.aux.xml", "masks.tif.vat.dbf"):
        assert is_ours(name), name
    for name in ("masks.qml", "masks.tif.bak", "masks.shp", "answer.json.txt", "masks.gpkg"):
        assert not is_ours(name), name


def test_a_folder_that_somebody_works_in_stays_the_same_folder(tmp_path, monkeypatch):
    out = tmp_path / "out"
    write(out, "old")
    before = out.stat().st_ino
    monkeypatch.chdir(out)
    write(out, "new")
    assert out.stat().st_ino == before
    write(tmp_path / "out" / ".", "newer")
    assert state(out) == "newer"
    assert sorted(os.listdir(out)) == sorted(FILES)


def test_the_folders_rights_stay(tmp_path):
    out = tmp_path / "out"
    out.mkdir(mode=0o750)
    out.chmod(0o2770)
    write(out, "new")
    assert out.stat().st_mode & 0o7777 == 0o2770


def test_what_others_write_in_the_last_moment_is_kept(tmp_path, monkeypatch):
    out = tmp_path / "out"
    write(out, "old")
    (out / "log.txt").write_text("one")
    real = staging.exchange

    def late(stage, place):
        (place / "late.txt").write_text("late")
        (place / "part").write_text("two")
        os.replace(place / "part", place / "log.txt")
        return real(stage, place)

    monkeypatch.setattr(staging, "exchange", late)
    write(out, "new")
    assert state(out) == "new"
    assert (out / "late.txt").read_text() == "late"
    assert (out / "log.txt").read_text() == "two"


def test_a_plan_of_a_stranger_touches_no_other_file(tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (tmp_path / "thesis.txt").write_text("years of work")
    (out / "notes.txt").write_text("mine")
    dead = owners.name_for("answer", "move").replace(f"-{os.getpid()}-", "-4194304-")
    (out / dead).mkdir()
    (out / dead / "answer.json").touch()
    plan = '{"new": ["../thesis.txt", "notes.txt"], "old": ["../../x"]}'
    (out / dead / "moving.json").write_text(plan)
    write(out, "new")
    assert (tmp_path / "thesis.txt").read_text() == "years of work"
    assert sorted(os.listdir(out)) == sorted([*FILES, "notes.txt"])


def test_a_folder_of_an_answer_s_name_is_not_taken_for_one(tmp_path):
    (tmp_path / "masks.tif").mkdir()
    (tmp_path / "masks.tif" / "thesis.txt").write_text("mine")
    with pytest.raises(IsADirectoryError):
        write(tmp_path, "new")
    assert [p.name for p in tmp_path.rglob("*")] == ["masks.tif", "thesis.txt"]


def test_a_process_whose_working_folder_is_gone_answers_elsewhere(tmp_path, monkeypatch):
    gone, out = tmp_path / "gone", tmp_path / "out"
    for folder in (gone, out):
        folder.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    write(out, "new")
    assert sorted(os.listdir(out)) == sorted(FILES)
