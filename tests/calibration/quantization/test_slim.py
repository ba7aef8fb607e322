"""A bundle with one precision alone."""

import os
import shutil

import pytest

from geomag_edge.calibration.quantization.slim import check_slim, write_slim
from geomag_edge.errors import BundleError, OutputError
from geomag_edge.manifest import Bundle


@pytest.fixture
def whole(bundle):
    return Bundle.open(bundle)


def test_nothing_but_the_precision_and_what_runs_it_is_copied(whole, tmp_path):
    slim = write_slim(whole, "fp32", tmp_path / "slim")
    there = {p.relative_to(slim.root).as_posix() for p in slim.root.rglob("*") if p.is_file()}
    assert there == set(slim.manifest.files) | {"bundle.json"}
    assert set(slim.manifest.files) < set(whole.manifest.files) | {"bundle.json"}
    assert {"tokenizer.json", "reference/arrays.npz"} <= there
    assert slim.manifest.calibration is None


def test_its_checkpoint_is_still_found_from_where_it_lies(whole, tmp_path):
    place = tmp_path / "some" / "where"
    place.parent.mkdir()
    slim = write_slim(whole, "fp32", place)
    was = (whole.root.resolve() / whole.manifest.checkpoint["path"]).resolve()
    assert (place.resolve() / slim.manifest.checkpoint["path"]).resolve() == was
    assert not os.path.isabs(slim.manifest.checkpoint["path"])


def test_a_precision_that_is_not_there_is_refused_and_nothing_is_written(whole, tmp_path):
    with pytest.raises(BundleError):
        write_slim(whole, "int8", tmp_path / "slim")
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_file_is_noticed_on_the_way_and_nothing_is_written(whole, tmp_path):
    copy = Bundle.open(shutil.copytree(whole.root, tmp_path / "copy"))
    with (copy.root / "tokenizer.json").open("ab") as file:
        file.write(b" ")
    with pytest.raises(BundleError, match=r"tokenizer\.json"):
        write_slim(copy, "fp32", tmp_path / "slim")
    assert [p.name for p in tmp_path.iterdir()] == ["copy"]


def test_a_place_is_checked_before_any_work_and_left_alone(whole, tmp_path):
    place = tmp_path / "slim"
    check_slim(whole, place, force=False)
    assert list(tmp_path.iterdir()) == []
    write_slim(whole, "fp32", place)
    before = {p: p.stat().st_mtime_ns for p in place.rglob("*")}
    with pytest.raises(OutputError):
        check_slim(whole, place, force=False)
    check_slim(whole, place, force=True)
    assert {p: p.stat().st_mtime_ns for p in place.rglob("*")} == before


def test_a_bundle_is_not_replaced_by_its_own_part(whole, tmp_path):
    copy = Bundle.open(shutil.copytree(whole.root, tmp_path / "copy"))
    with pytest.raises(OutputError):
        check_slim(copy, copy.root, force=True)
    with pytest.raises(OutputError):
        write_slim(copy, "fp32", copy.root, force=True)
    assert Bundle.open(copy.root).manifest.to_json() == copy.manifest.to_json()


def test_a_hint_that_leads_in_a_circle_is_only_a_hint(whole, tmp_path):
    copy = Bundle.open(shutil.copytree(whole.root, tmp_path / "copy"))
    (copy.root / "loop").symlink_to("loop")
    copy.manifest.checkpoint["path"] = "loop/x"
    slim = write_slim(copy, "fp32", tmp_path / "slim")
    assert slim.manifest.checkpoint["path"].endswith("/loop/x")
