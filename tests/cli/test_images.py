"""Images on the command line: names that are no paths, values without data, ranges by band."""

import json
import os
import subprocess
import sys
import zipfile

import numpy as np
import pytest
import rasterio
import rasterio.shutil


@pytest.fixture
def scene(tmp_path):
    """Three bands of 16 bits: 90 x 120 px, a third of them 65535, which nothing declares."""
    values = np.random.default_rng(2).integers(300, 3000, (3, 90, 120)).astype(np.uint16)
    values[:, :30] = 65535
    path = tmp_path / "scene.tif"
    with rasterio.open(
        path, "w", driver="GTiff", height=90, width=120, count=3, dtype="uint16",
        photometric="MINISBLACK", crs="EPSG:32633", transform=rasterio.Affine(1, 0, 0, 0, -1, 0),
    ) as ds:  # fmt: skip
        ds.write(values)
    return path


def zip_url(scene):
    with zipfile.ZipFile(scene.with_suffix(".zip"), "w") as archive:
        archive.write(scene, "scene.tif")
    return f"zip://{scene.with_suffix('.zip')}!scene.tif"


def part(scene):
    rasterio.shutil.copy(str(scene), str(scene.with_suffix(".nc")), driver="netCDF")
    return f"netcdf:{scene.with_suffix('.nc')}:Band1"


def folder(scene):
    rasterio.shutil.copy(str(scene), str(scene.with_suffix(".zarr")), driver="Zarr")
    return str(scene.with_suffix(".zarr"))


NAMES = {
    "zip URL": zip_url,
    "file URL": lambda scene: f"file://{scene}",
    "part": part,
    "folder": folder,
}


@pytest.mark.parametrize("kind", NAMES)
def test_run_reads_an_image_by_any_name_and_records_it_as_written(command, bundle, scene, kind):
    name = NAMES[kind](scene)
    out_dir = scene.parent / "out"
    code, out, err = command(
        "run", bundle, name, "find ships", "--max-new-tokens", 1, "--json", "-o", out_dir
    )
    assert code == 0, err
    assert json.loads(out)["image"] == name
    assert json.loads((out_dir / "answer.json").read_text())["image"] == name


def test_bench_reads_an_image_by_any_name(command, bundle, scene):
    code, out, err = command(
        "bench", bundle, "--image", zip_url(scene), "--rounds", 1, "--budget", "image",
        "--max-new-tokens", 1, "--nodata=65535", "--json",
    )  # fmt: skip
    assert code == 0, err
    report = json.loads(out)
    assert "--image 'scene.zip!scene.tif' --nodata=65535" in report["command"]
    assert report["cases"][0]["image_px"] == 120


def test_a_missing_url_is_one_line_with_its_slashes(command, bundle, tmp_path):
    name = f"zip://{tmp_path}/no.zip!scene.tif"
    code, out, err = command("run", bundle, name, "find ships")
    assert (code, out) == (2, "")
    assert err == f"geomag-edge run: error: no image at {name}: check the path\n"


@pytest.mark.parametrize("exists", [True, False])
def test_a_name_that_is_not_utf8_is_read_or_refused_in_one_line(bundle, scene, exists):
    name = os.fsencode(scene.parent) + b"/sc\xe9ne.tif"
    if exists:
        os.rename(scene, name)
    done = subprocess.run(
        [sys.executable, "-m", "geomag_edge", "run", bundle, name, "find ships",
         "--max-new-tokens", "1", "--json", "-o", scene.parent / "out"],
        capture_output=True, text=True,
    )  # fmt: skip
    if exists:
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["image"].endswith("/sc\\xe9ne.tif")
        assert (scene.parent / "out" / "answer.json").exists()
    else:
        assert done.returncode == 2
        (line,) = done.stderr.splitlines()
        assert "no image at" in line


def test_the_option_that_a_note_on_fill_proposes_is_taken(command, bundle, scene):
    code, out, _ = command("run", bundle, scene, "find ships", "--max-new-tokens", 1, "--json")
    (note,) = [n for n in json.loads(out)["notes"] if "undeclared fill" in n]
    option = note.partition("; ")[2].split()[0]
    code, out, err = command(
        "run", bundle, scene, "find ships", "--max-new-tokens", 1, "--json", option
    )
    assert code == 0, err
    assert not any("fill" in n for n in json.loads(out)["notes"])


@pytest.mark.parametrize("value", ["-9999", "-3.4e38", "nan", "0.5"])
def test_nodata_takes_any_number(command, bundle, picture, value):
    arguments = ("run", bundle, picture, "find ships", "--max-new-tokens", 1, f"--nodata={value}")
    assert command(*arguments)[0] == 0


def test_range_takes_a_pair_for_each_colour(command, bundle, scene):
    asked = ("run", bundle, scene, "find ships", "--max-new-tokens", 1, "--json", "--range")
    code, out, _ = command(*asked, "300,3000,0,2000,0,1000")
    assert code == 0
    assert "values 300..3000, 0..2000, 0..1000 scaled to 0..255" in json.loads(out)["notes"]
    code, _, err = command(*asked, "300,3000,5")
    assert code == 2
    assert "has 3 numbers: give 2 or 6" in err


def test_eval_takes_nodata_for_the_pictures_of_a_set(command, bundle, scene):
    folder = scene.parent / "set"
    (folder / "images").mkdir(parents=True)
    scene.rename(folder / "images" / "a.tif")
    line = {"image": "images/a.tif", "level": "image", "prompt": "how many ships", "answer": "3"}
    (folder / "questions.jsonl").write_text(json.dumps(line) + "\n")
    asked = ("eval", bundle, "--data", folder, "--max-new-tokens", 1, "--json")
    assert command(*asked, "--nodata=65535")[0] == 0
    with rasterio.open(folder / "images" / "a.tif", "r+") as ds:
        ds.write(np.full((3, 90, 120), 7, np.uint16))
    code, _, err = command(*asked, "--nodata", 7)
    assert code == 2
    assert "has no valid pixel" in err
