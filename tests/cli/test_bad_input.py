"""Bad input ends in one clear line, the right exit code, and nothing half-written."""

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import rasterio
import torch
from PIL import Image
from rasterio.transform import from_origin
from safetensors.torch import load_file, save_file


def one_line(err):
    """The one error line of a failed command (progress lines before it are not errors)."""
    errors = [line for line in err.splitlines() if "error:" in line]
    assert len(errors) == 1, err
    assert "Traceback" not in err
    return errors[0]


def tiff(path, array, **profile):
    count, height, width = array.shape
    settings = {"driver": "GTiff", "count": count, "height": height, "width": width,
                "dtype": array.dtype, "transform": from_origin(0, 0, 1, 1)} | profile  # fmt: skip
    with rasterio.open(path, "w", **settings) as f:
        f.write(array)
    return path


def missing(folder):
    return folder / "nowhere.tif"


def corrupt_png(folder):
    path = folder / "corrupt.png"
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"nonsense" * 40)
    return path


def truncated_tiff(folder):
    rng = np.random.default_rng(0)
    path = tiff(folder / "whole.tif", rng.integers(0, 255, (3, 300, 300), np.uint8))
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    return path


def not_an_image(folder):
    path = folder / "notes.txt"
    path.write_text("no pixels here")
    return path


def a_folder(folder):
    return folder


def empty_file(folder):
    path = folder / "empty.tif"
    path.touch()
    return path


def all_nodata(folder):
    return tiff(folder / "nodata.tif", np.zeros((3, 40, 40), np.uint8), nodata=0)


def complex_dtype(folder):
    return tiff(folder / "complex.tif", np.ones((1, 40, 40), np.complex64))


BAD_IMAGES = [
    missing, corrupt_png, truncated_tiff, not_an_image, a_folder, empty_file, all_nodata,
    complex_dtype,
]  # fmt: skip


@pytest.mark.parametrize("make", BAD_IMAGES, ids=lambda f: f.__name__)
def test_an_unusable_image_is_refused(command, bundle, tmp_path, make):
    (tmp_path / "in").mkdir()
    code, _, err = command(
        "run", bundle, make(tmp_path / "in"), "find ships", "-o", tmp_path / "out"
    )
    assert code == 2
    one_line(err)
    assert not (tmp_path / "out").exists()


def test_a_band_that_is_not_there_is_refused(command, bundle, picture):
    code, _, err = command("run", bundle, picture, "find ships", "--bands", "1,2,9")
    assert code == 2
    assert "9" in one_line(err)


@pytest.mark.parametrize("size", [(1, 1), (1, 700), (900, 2)])
def test_very_small_and_very_thin_images_work(command, bundle, tmp_path, size):
    path = tmp_path / "thin.png"
    Image.new("RGB", size, (90, 120, 30)).save(path)
    code, _, err = command(
        "run", bundle, path, "find ships", "--budget", "pixel", "--answer-prefix", "[SEG]",
        "--max-new-tokens", 1, "-o", tmp_path / "out",
    )  # fmt: skip
    assert code == 0, err
    with rasterio.open(tmp_path / "out" / "masks.tif") as made:
        assert (made.width, made.height) == size


@pytest.mark.parametrize("bands", [1, 2, 4, 5])
@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16", "float32"])
def test_any_number_of_bands_and_any_real_type_works(command, bundle, tmp_path, bands, dtype):
    values = np.random.default_rng(1).integers(0, 250, (bands, 60, 80)).astype(dtype)
    path = tiff(tmp_path / "image.tif", values)
    code, _, err = command("run", bundle, path, "find ships", "--max-new-tokens", 1)
    assert code == 0, err


@pytest.mark.parametrize(
    ("prompt", "says"),
    [
        ("", "empty"),
        ("   \n", "empty"),
        ("x" * 30_000, "30000 characters"),
        ("ship " * 600, "positions"),
    ],
)
def test_a_prompt_that_cannot_be_asked_is_refused(command, bundle, picture, prompt, says):
    code, _, err = command("run", bundle, picture, prompt)
    assert code == 2
    assert says in one_line(err)


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["--engine", "warp-drive"], "unknown engine"),
        (["--precision", "int3"], "no int3 graphs"),
        (["--budget", "huge"], "unknown budget"),
        (["--budget", "50+2x2"], "finer than the encoder"),
        (["--budget", "2+9x2"], "at most 4"),
        (["--max-new-tokens", "0"], "not at least 1"),
        (["--bands", "red"], "not a list of numbers"),
        (["--range", "1"], "give 2"),
        (["--frobnicate"], "unrecognized arguments"),
    ],
)
def test_wrong_usage_is_refused(command, bundle, picture, argv, says):
    code, _, err = command("run", bundle, picture, "find ships", *argv)
    assert code == 2
    assert says in one_line(err)


def changed_byte(bundle):
    path = bundle / "onnx/fp32/encoder.onnx.data"
    data = bytearray(path.read_bytes())
    data[100] ^= 1
    path.write_bytes(data)


def missing_file(bundle):
    (bundle / "onnx/fp32/llm.onnx").unlink()


def unknown_version(bundle):
    edit(bundle, lambda m: m.update(format_version=99))


def leaving_path(bundle):
    edit(bundle, lambda m: m["graphs"]["fp32"]["encoder"].update(file="../../etc/encoder.onnx"))


def absolute_path(bundle):
    edit(bundle, lambda m: m["files"].update({"/etc/hostname": "0" * 64}))


def damaged_manifest(bundle):
    (bundle / "bundle.json").write_text('{"format_version": 1, ')


def no_manifest(bundle):
    (bundle / "bundle.json").unlink()


def edit(bundle, change):
    path = bundle / "bundle.json"
    manifest = json.loads(path.read_text())
    change(manifest)
    path.write_text(json.dumps(manifest))


BAD_BUNDLES = {
    changed_byte: "sha256", missing_file: "lacks", unknown_version: "version",
    leaving_path: "inside the bundle", absolute_path: "inside the bundle",
    damaged_manifest: "JSON", no_manifest: "no bundle",
}  # fmt: skip


@pytest.mark.parametrize("damage", BAD_BUNDLES, ids=lambda f: f.__name__)
def test_a_bundle_that_is_not_what_was_exported_is_refused(command, bundle_copy, picture, damage):
    damage(bundle_copy)
    code, _, err = command("run", bundle_copy, picture, "find ships")
    assert code == 2
    assert BAD_BUNDLES[damage] in one_line(err)


def lacks_a_tensor(folder):
    edit_weights(folder, lambda w: w.pop("projector.up.weight"))


def has_an_extra_tensor(folder):
    edit_weights(folder, lambda w: w.update(surprise=torch.zeros(2)))


def has_a_misshapen_tensor(folder):
    edit_weights(folder, lambda w: w.update({"projector.up.bias": torch.zeros(3)}))


def is_truncated(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:5000])


def is_pickle(folder):
    (folder / "model.safetensors").unlink()
    torch.save({}, folder / "pytorch_model.bin")


def has_no_config(folder):
    (folder / "config.json").unlink()


def is_another_model(folder):
    (folder / "config.json").write_text('{"model_type": "bert"}')


def edit_weights(folder, change):
    path = folder / "model.safetensors"
    weights = load_file(path)
    change(weights)
    save_file(weights, path, metadata={"format": "pt"})


BAD_CHECKPOINTS = {
    lacks_a_tensor: "lacks tensors: projector.up.weight",
    has_an_extra_tensor: "surprise",
    has_a_misshapen_tensor: "projector.up.bias",
    is_truncated: "cannot be loaded",
    is_pickle: "pickle",
    has_no_config: "config.json",
    is_another_model: "not a GeoMag checkpoint",
}


@pytest.mark.parametrize("damage", BAD_CHECKPOINTS, ids=lambda f: f.__name__)
def test_a_checkpoint_that_is_not_whole_is_refused(command, checkpoint_of, tmp_path, damage):
    folder = shutil.copytree(checkpoint_of("qwen2-clip"), tmp_path / "ck")
    damage(folder)
    code, _, err = command("export", folder, "-o", tmp_path / "out")
    assert code == 2
    assert BAD_CHECKPOINTS[damage] in one_line(err)
    assert [p.name for p in tmp_path.iterdir()] == ["ck"]


def test_an_existing_output_is_not_replaced_without_force(command, checkpoint_of, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "precious").touch()
    code, _, err = command("export", checkpoint_of("qwen2-clip"), "-o", tmp_path / "out")
    assert code == 2
    assert "--force" in one_line(err)
    assert (tmp_path / "out" / "precious").exists()


def test_a_place_that_cannot_be_written_is_refused(
    command, bundle, checkpoint_of, picture, tmp_path
):
    (tmp_path / "file").touch()
    inside = tmp_path / "file" / "out"
    for argv in (["run", bundle, picture, "find ships", "--max-new-tokens", 1],
                 ["export", checkpoint_of("qwen2-clip")]):  # fmt: skip
        code, _, err = command(*argv, "-o", inside)
        assert code == 2
        one_line(err)
    assert (tmp_path / "file").read_bytes() == b""


def test_a_full_disk_leaves_nothing_behind(command, checkpoint_of, tmp_path, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(np, "savez", full)  # the first large write of an export
    code, _, err = command("export", checkpoint_of("qwen2-clip"), "-o", tmp_path / "out")
    assert code == 2
    assert "disk is full" in one_line(err)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "kind", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP], ids=lambda s: s.name
)
def test_an_export_that_is_stopped_leaves_nothing_behind(checkpoint_of, tmp_path, kind):
    argv = [sys.executable, "-m", "geomag_edge", "export"]
    process = subprocess.Popen(
        [*argv, str(checkpoint_of("qwen2-clip")), "-o", str(tmp_path / "out")],
        stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        # A shell's background jobs are started with SIGINT ignored, and so is what they start.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )  # fmt: skip
    for line in process.stderr:
        if "exporting encoder" in line:
            break
    time.sleep(0.5)
    process.send_signal(kind)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 128 + kind
    assert "interrupted" in err
    assert "Traceback" not in err
    assert list(tmp_path.iterdir()) == []


def test_drift_past_tolerance_is_a_failure_that_names_the_graph(command, bundle_copy):
    listing = bundle_copy / "reference" / "reference.json"
    data = json.loads(listing.read_text())
    for sample in data["samples"]:
        for call in sample["calls"]:
            if call["graph"] == "projector":  # another stage's output stands in for a drifted one
                call["outputs"]["visual"] = call["inputs"]["positions"]
    listing.write_text(json.dumps(data))
    from geomag_edge.manifest import sha256_of

    edit(bundle_copy, lambda m: m["files"].update({"reference/reference.json": sha256_of(listing)}))
    code, _, err = command("verify", bundle_copy)
    assert code == 1
    assert "graph projector, output visual" in one_line(err)


def test_the_torch_engine_asks_for_its_checkpoint_when_the_bundle_has_moved(
    command, bundle_copy, checkpoint_of, picture
):
    edit(bundle_copy, lambda m: m["checkpoint"].update(path="../gone"))
    code, _, err = command("run", bundle_copy, picture, "find ships", "--engine", "torch")
    assert code == 2
    assert "--checkpoint" in one_line(err)
    given = ["--engine", "torch", "--checkpoint", checkpoint_of("llama-clip")]
    code, _, err = command("run", bundle_copy, picture, "find ships", *given)
    assert code == 2
    assert "not the checkpoint" in one_line(err)


def test_an_output_that_is_a_file_is_refused_before_any_work(command, bundle, picture, tmp_path):
    (tmp_path / "file").touch()
    code, out, err = command("run", bundle, picture, "find ships", "-o", tmp_path / "file")
    assert code == 2
    assert "give a folder" in one_line(err)
    assert out == ""


def test_an_export_onto_its_own_checkpoint_is_refused(command, checkpoint_of, tmp_path):
    folder = shutil.copytree(checkpoint_of("qwen2-clip"), tmp_path / "ck")
    code, _, err = command("export", folder, "-o", folder, "--force")
    assert code == 2
    assert "holds the input" in one_line(err)
    assert (folder / "model.safetensors").is_file()
