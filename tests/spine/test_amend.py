"""Changing a part of a bundle: all of it or nothing."""

import json
import shutil

import pytest

from geomag_edge.disk.amend import amended, copy_bundle
from geomag_edge.disk.staging import staged_folder
from geomag_edge.errors import BundleError, OutputError
from geomag_edge.manifest import MANIFEST, Bundle

from .test_manifest import data, encoder, golden  # noqa: F401


@pytest.fixture
def bundle(golden):  # noqa: F811
    return Bundle.open(golden)


def everything(root):
    return {p.relative_to(root).as_posix(): p.read_bytes() for p in root.rglob("*") if p.is_file()}


INT8 = encoder(location=None)


def add_int8(change, content=INT8):
    (change.stage / "encoder.onnx").write_bytes(content)
    record = change.bundle.manifest.graphs["fp32"]["encoder"]
    change.bundle.manifest.graphs["int8"] = {
        "encoder": {**record, "file": "onnx/int8/encoder.onnx", "data": []}
    }
    change.list_files()


def test_a_new_part_is_there_with_its_checksum(bundle):
    with amended(bundle, "onnx/int8") as change:
        add_int8(change)
    again = Bundle.open(bundle.root)
    assert again.graph("encoder", "int8").read_bytes() == INT8
    assert again.graph("encoder", "fp32").is_file()
    assert not [p for p in bundle.root.rglob(".*")]


def test_staged_files_can_be_opened_before_they_are_moved(bundle):
    with amended(bundle, "onnx/int8") as change:
        add_int8(change)
        assert change.bundle.graph("encoder", "int8").read_bytes() == INT8
        assert not (bundle.root / "onnx" / "int8").exists()


def test_a_part_is_replaced_whole(bundle):
    with amended(bundle, "onnx/int8") as change:
        (change.stage / "old.onnx").write_bytes(b"old")
    with amended(Bundle.open(bundle.root), "onnx/int8") as change:
        add_int8(change, INT8 + b"\x32\x03new")  # its doc_string
    again = Bundle.open(bundle.root)
    assert "onnx/int8/old.onnx" not in again.manifest.files
    assert not (bundle.root / "onnx/int8/old.onnx").exists()
    assert again.graph("encoder", "int8").read_bytes().endswith(b"new")


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, OSError])
def test_whatever_ends_the_work_the_bundle_is_as_it_was(bundle, error):
    with amended(bundle, "onnx/int8") as change:
        add_int8(change)
    before = everything(bundle.root)

    def half_done():
        with amended(Bundle.open(bundle.root), "onnx/int8") as change:
            add_int8(change, b"half-written")
            raise error("stop")

    with pytest.raises((error, OutputError)):
        half_done()
    assert everything(bundle.root) == before


def test_a_change_by_somebody_else_meanwhile_is_not_lost(bundle):
    def slow_change():
        with amended(bundle, "onnx/int8") as change:
            add_int8(change)
            path = bundle.root / "bundle.json"
            path.write_text(json.dumps({**json.loads(path.read_text()), "created_by": "another"}))

    with pytest.raises(OutputError, match="changed by another command"):
        slow_change()
    assert Bundle.open(bundle.root).manifest.created_by == "another"
    assert "int8" not in Bundle.open(bundle.root).manifest.graphs


@pytest.mark.parametrize("inside", ["../victim", "/tmp/victim", "a/../../victim", "a//b", "", "."])
def test_no_folder_outside_the_bundle_is_replaced(bundle, inside):
    with pytest.raises(BundleError, match="not a path inside"), amended(bundle, inside):
        pass


def test_no_folder_is_replaced_through_a_link(bundle, tmp_path):
    """The names are plain, but the bundle's own folder leads elsewhere."""
    victim = tmp_path / "victim" / "orin" / "fp32"
    victim.mkdir(parents=True)
    (victim / "thesis.txt").write_text("years of work")
    (bundle.root / "engines").symlink_to(tmp_path / "victim")
    with (
        pytest.raises(BundleError, match="a link that leaves the bundle"),
        amended(bundle, "engines/orin/fp32") as change,
    ):
        (change.stage / "build.json").write_text("{}")
    assert (victim / "thesis.txt").read_text() == "years of work"


def test_a_report_that_is_not_finite_does_not_make_a_bundle_that_nobody_reads(bundle):
    with amended(bundle, "onnx/int8") as change:
        add_int8(change)
        change.bundle.manifest.parity["int8"] = {
            "ok": False,
            "graphs": [{"relative": float("inf")}],
        }
    assert Bundle.open(bundle.root).manifest.parity["int8"]["graphs"] == [{"relative": None}]


def test_a_copy_in_the_making_is_changed_before_it_is_there(bundle, tmp_path):
    """As `calibrate -o` and `quantize -o` do: the copy's writer holds its lock already."""
    with staged_folder(tmp_path / "copy", False, MANIFEST) as stage:
        copy_bundle(bundle, stage)
        with amended(Bundle.open(stage), "onnx/int8") as change:
            add_int8(change)
    assert Bundle.open(tmp_path / "copy").graph("encoder", "int8").read_bytes() == INT8


def test_a_copy_holds_what_the_manifest_lists_and_nothing_that_links_lead_to(bundle, tmp_path):
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "key").write_text("secret")
    (bundle.root / "docs").symlink_to(tmp_path / "home")
    (bundle.root / "up").symlink_to("..")
    (bundle.root / "zero").symlink_to("/dev/zero")
    (tmp_path / "copy").mkdir()
    copy_bundle(bundle, tmp_path / "copy")
    assert {*everything(tmp_path / "copy")} == {MANIFEST, *bundle.manifest.files}
    assert Bundle.open(tmp_path / "copy").manifest == bundle.manifest


def test_a_copy_does_not_want_engines_that_were_removed(bundle, tmp_path):
    with amended(bundle, "engines/orin/fp32") as change:
        (change.stage / "build.json").write_text("{}")
    shutil.rmtree(bundle.root / "engines")
    (tmp_path / "copy").mkdir()
    copy_bundle(Bundle.open(bundle.root), tmp_path / "copy")
    assert Bundle.open(tmp_path / "copy").graph("encoder", "fp32")
