"""Caches are only a help: without a home, or with one that cannot be used, everything works."""

import numpy as np
import pytest

from geomag_edge.cli.commands.doctor import examine
from geomag_edge.manifest import Bundle
from geomag_edge.runtime.chain import probe
from geomag_edge.runtime.chain.pipeline import Pipeline
from geomag_edge.runtime.engines.auto import remembered
from geomag_edge.runtime.engines.auto.auto import AutoEngine
from geomag_edge.runtime.engines.tensorrt.build import _open_timing_cache
from geomag_edge.runtime.planning.latency import LatencyModel

HOMES = ("none", "unknown user", "/dev/null", "a file", "no permission", "read only", "too long")


@pytest.fixture(params=HOMES)
def home(request, monkeypatch, tmp_path):
    """A user without a usable home, in one of the ways that there are."""
    monkeypatch.delenv("XDG_CACHE_HOME")
    kind = request.param
    if kind in ("none", "unknown user"):  # without HOME the user's entry is asked, which is missing
        monkeypatch.delenv("HOME", raising=False)
        monkeypatch.setattr("pwd.getpwuid", lambda uid: {}[uid])
    elif kind == "a file":
        (tmp_path / "home").write_text("")
        monkeypatch.setenv("HOME", str(tmp_path / "home"))
    elif kind in ("no permission", "read only"):  # root may do anything, so it is said for it
        monkeypatch.setenv("HOME", str(tmp_path))

        def refused(*args, **kwargs):
            raise PermissionError(13, "Permission denied")

        names = ("mkdir", "glob", "read_text", "is_file", "read_bytes")
        for name in names if kind == "no permission" else names[:1]:
            monkeypatch.setattr(remembered.Path, name, refused)
        yield kind
        monkeypatch.undo()
        return
    else:
        monkeypatch.setenv("HOME", "/dev/null" if kind == "/dev/null" else "/" + "x" * 300)
    yield kind


def test_what_cannot_be_remembered_is_one_note(home):
    place = remembered.place("llm", "fp32", {})
    assert remembered.recall(place) is None
    note = remembered.remember(place, {})
    assert "not remembered" in note
    assert "\n" not in note
    assert len(note) < 450
    assert remembered.everything() == []


def test_a_relative_cache_folder_is_not_heeded(monkeypatch, tmp_path):
    """Else every folder that a command is called from would get one."""
    monkeypatch.setenv("HOME", str(tmp_path))
    for given in ("", "cache", "./x", "~"):
        monkeypatch.setenv("XDG_CACHE_HOME", given)
        assert remembered.cache_root() == tmp_path / ".cache" / "geomag-edge"


@pytest.fixture
def homeless(monkeypatch):
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.setattr("pwd.getpwuid", lambda uid: {}[uid])


def test_the_doctor_needs_no_home(homeless):
    found = examine()
    assert found["auto_folder"] is None
    assert found["auto"] == []


def test_auto_needs_no_home(homeless, bundle):
    engine = AutoEngine(Bundle.open(bundle), "fp32", 1, candidates=("ort-cpu",))
    lost = [note for note in engine.notes if "not remembered" in note]
    engine.close()
    assert len(lost) == 1


def test_a_deadline_needs_no_home_and_says_so(homeless, bundle, monkeypatch):
    nothing = dict.fromkeys(
        ("crop", "encode", "select", "project", "prefill", "step", "mask"), (1.0,)
    )
    model = LatencyModel(**nothing, spread=1.0, source="measured")
    monkeypatch.setattr(probe, "measure", lambda pipe, progress: model)
    with Pipeline.load(bundle, threads=1) as pipe:
        answer = pipe(np.zeros((64, 64, 3), np.uint8), "find ships", latency_ms=60_000)
    assert sum("not remembered" in note for note in answer.notes) == 1


def test_a_builder_needs_no_home(homeless, tmp_path):
    class Config:
        def create_timing_cache(self, known):
            assert known == b""
            return "cache"

        def set_timing_cache(self, cache, ignore):
            return True

    class Flavour:
        name = "tensorrt"

    assert _open_timing_cache(Flavour, Config(), None) is None
    assert _open_timing_cache(Flavour, Config(), tmp_path) == "cache"  # a folder cannot be read
