"""An export that fails leaves nothing behind, and what was there stays."""

import errno
import shutil

import pytest

from geomag_edge.errors import CheckpointError, InputError, OutputError, ParityError
from geomag_edge.export import exporter
from geomag_edge.export.exporter import export_bundle
from geomag_edge.graphs import TOLERANCES, Tolerance


@pytest.fixture
def old(tmp_path):
    """An earlier bundle in the place to be written."""
    out = tmp_path / "bundle"
    out.mkdir()
    (out / "bundle.json").write_text("old")
    return out


def assert_untouched(old):
    assert [p.name for p in old.parent.iterdir()] == ["bundle"]
    assert [p.name for p in old.iterdir()] == ["bundle.json"]
    assert (old / "bundle.json").read_text() == "old"


def test_no_bundle_is_written_when_parity_fails(exported, old, monkeypatch):
    made = exported()

    def graphs_of_before(model, folder, *settings):  # exporting the same again would give these
        shutil.copytree(made.graph("encoder").parent, folder, dirs_exist_ok=True)

    monkeypatch.setattr(exporter, "_export_graphs", graphs_of_before)
    monkeypatch.setitem(TOLERANCES, "fp32", Tolerance(0.0, 1.0, True))
    with pytest.raises(ParityError, match=r"parity failed, nothing was written: graph encoder"):
        export_bundle(made.checkpoint, old, force=True)
    assert_untouched(old)


@pytest.mark.parametrize(
    ("cause", "seen"),
    [
        (KeyboardInterrupt(), KeyboardInterrupt),
        (OSError(errno.ENOSPC, "No space left on device"), OutputError),
    ],
    ids=["Ctrl-C", "full disk"],
)
def test_an_interrupted_export_leaves_nothing(checkpoint_of, old, cause, seen):
    steps = []

    def interrupt(step):
        steps.append(step)
        if step == "exporting mask_head":
            raise cause

    with pytest.raises(seen):
        export_bundle(checkpoint_of("qwen2-clip"), old, force=True, progress=interrupt)
    assert "exporting encoder" in steps  # a graph was on disk already
    assert_untouched(old)


def test_a_chain_that_contradicts_the_reference_is_not_exported(checkpoint_of, old, monkeypatch):
    from geomag_edge.export import parity

    def lying(*args):
        found = real(*args)
        found.token_ids[2] += 1
        return found

    real = parity.answer
    monkeypatch.setattr(parity, "answer", lying)
    with pytest.raises(ParityError, match="differ at token 2 of"):
        export_bundle(checkpoint_of("qwen2-clip"), old, force=True)
    assert_untouched(old)


def test_an_existing_bundle_is_not_replaced_unasked(checkpoint_of, old):
    with pytest.raises(OutputError, match="--force"):
        export_bundle(checkpoint_of("qwen2-clip"), old)
    assert_untouched(old)


@pytest.mark.parametrize(
    ("settings", "reason"),
    [({"dtype": "int3"}, "unknown dtype 'int3'"), ({"opset": 19}, "opset 19 is not supported")],
)
def test_unknown_settings_are_refused_before_anything_is_loaded(tmp_path, settings, reason):
    with pytest.raises(InputError, match=reason):
        export_bundle(tmp_path / "no checkpoint", tmp_path / "out", **settings)


def test_a_missing_checkpoint_leaves_nothing(tmp_path):
    with pytest.raises(CheckpointError, match="no checkpoint folder"):
        export_bundle(tmp_path / "missing", tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_progress_is_told_as_often_as_announced(exported):
    assert len(exported().steps) == exporter.STEPS
