"""Names of images: what GDAL opens is opened, whatever it is called; errors are one line."""

import gzip
import os
import re
import shlex
import subprocess
import sys
import zipfile
from urllib.parse import quote

import numpy as np
import pytest
import rasterio
import rasterio.shutil
from PIL import Image
from rasterio.enums import Resampling

from geomag_edge.errors import ImageError
from geomag_edge.runtime.images import scene as scene_module
from geomag_edge.runtime.images.scene import Scene

pytestmark = pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")

PICTURE = np.asarray(
    Image.fromarray(np.random.default_rng(3).integers(0, 250, (6, 8, 3), dtype=np.uint8)).resize(
        (80, 60), Image.Resampling.BICUBIC
    )
)
GREY = PICTURE[..., :1]  # several bands would be several images in some formats


def write_tiff(path, values=PICTURE, mask=None, **profile):
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=False), rasterio.open(
        path, "w", driver="GTiff", height=values.shape[0], width=values.shape[1],
        count=values.shape[2], dtype=values.dtype, **profile,
    ) as ds:  # fmt: skip
        ds.write(np.moveaxis(values, -1, 0))
        if mask is not None:
            ds.write_mask(mask)
    return str(path)


def converted(folder, name, driver, picture=PICTURE, **options):
    source = write_tiff(folder / "source.tif", picture)
    rasterio.shutil.copy(source, str(folder / name), driver=driver, **options)
    os.remove(source)
    return str(folder / name)


def pages(folder):
    first, second = Image.fromarray(PICTURE[::-1].copy()), Image.fromarray(PICTURE)
    first.save(folder / "pages.tif", save_all=True, append_images=[second])
    return f"GTIFF_DIR:2:{folder}/pages.tif"


def zipped(folder):
    write_tiff(folder / "a.tif")
    with zipfile.ZipFile(folder / "a.zip", "w") as archive:
        archive.write(folder / "a.tif", "in/a.tif")
    return "a.zip"


def zarr(folder):
    return converted(folder, "a.zarr", "Zarr")


def unnamable(folder):
    """A name whose bytes are no UTF-8."""
    path = os.fsdecode(os.fsencode(folder) + b"/sc\xe9ne.tif")
    write_tiff(folder / "a.tif")
    os.rename(folder / "a.tif", path)
    return path


def in_unnamable(folder):
    path = os.fsdecode(os.fsencode(folder) + b"/m\xe4rz")
    os.mkdir(path)
    write_tiff(folder / "a.tif")
    os.rename(folder / "a.tif", path + "/a.tif")
    return path


NAMES = {
    "absolute path": lambda p: write_tiff(p / "a.tif"),
    "relative path": lambda p: os.path.basename(write_tiff(p / "a.tif")),
    "path with a colon": lambda p: write_tiff(p / "T10:30.tif"),
    "path with signs of a URL": lambda p: write_tiff(p / "a?b#c%20d!e.tif"),
    "file URL": lambda p: "file://" + write_tiff(p / "a.tif"),
    "file URL with signs": lambda p: "file://" + write_tiff(p / "a b.tif").replace(" ", "%20"),
    "zip URL": lambda p: f"zip://{p}/{zipped(p)}!in/a.tif",
    "relative zip URL": lambda p: f"zip://{zipped(p)}!in/a.tif",
    "zip as GDAL names it": lambda p: f"/vsizip/{p}/{zipped(p)}/in/a.tif",
    "page of a TIFF": pages,
    "folder": zarr,
    "folder with a slash": lambda p: zarr(p) + "/",
    "array in a folder": lambda p: f'ZARR:"{zarr(p)}":/a',
    "not UTF-8": unnamable,
    "not UTF-8 and relative": lambda p: os.path.basename(unnamable(p)),
    "folder that is not UTF-8": lambda p: in_unnamable(p) + "/a.tif",
    "file URL that is not UTF-8": lambda p: "file://" + quote(os.fsencode(unnamable(p))),
}


@pytest.mark.parametrize("kind", NAMES)
def test_whatever_gdal_opens_by_its_name_is_opened(tmp_path, monkeypatch, kind):
    monkeypatch.chdir(tmp_path)
    with Scene.open(NAMES[kind](tmp_path)) as scene:
        np.testing.assert_array_equal(scene.thumbnail(100)[0], PICTURE)


@pytest.mark.parametrize("form", ["netcdf:{}:Band2", 'NETCDF:"{}":Band2'])
def test_a_part_of_a_file_is_opened(tmp_path, form):
    name = form.format(converted(tmp_path, "a.nc", "netCDF"))
    with Scene.open(name) as scene:
        np.testing.assert_array_equal(scene.thumbnail(100)[0][..., 0], PICTURE[..., 1])
        assert scene.path is None


def test_the_part_that_an_error_proposes_can_be_opened(tmp_path):
    folder = tmp_path / "a b"
    folder.mkdir()
    with pytest.raises(ImageError, match="holds no bands itself: give one of its parts") as error:
        Scene.open(converted(folder, "a.nc", "netCDF"))
    (name,) = shlex.split(str(error.value).partition("such as ")[2])
    with Scene.open(name) as scene:
        assert (scene.height, scene.width) == (60, 80)


def test_a_file_of_several_images_says_how_to_read_another(tmp_path):
    pages(tmp_path)
    with Scene.open(tmp_path / "pages.tif") as scene:
        np.testing.assert_array_equal(scene.thumbnail(100)[0], PICTURE[::-1])
        (note,) = scene.notes
    assert note.startswith("holds 2 images, of which the first is read")
    (name,) = shlex.split(note.partition("such as ")[2])
    with Scene.open(name) as scene:
        np.testing.assert_array_equal(scene.thumbnail(100)[0], PICTURE)


def test_an_image_is_read_over_http(tmp_path, monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    write_tiff(tmp_path / "a.tif", tiled=True, blockxsize=16, blockysize=16)
    # In a process of its own: GDAL opens files without letting other Python threads run.
    command = [sys.executable, "-u", "-m", "http.server", "0", "--bind", "127.0.0.1"]
    with subprocess.Popen(
        command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as server:
        port = re.search(r"port (\d+)", server.stdout.readline())[1]
        try:
            with Scene.open(f"http://127.0.0.1:{port}/a.tif?key=1") as scene:
                np.testing.assert_array_equal(scene.thumbnail(100)[0], PICTURE)
        finally:
            server.terminate()


def test_the_path_of_a_scene_is_that_of_a_file_or_none(tmp_path):
    assert Scene.open(write_tiff(tmp_path / "a.tif")).path == tmp_path / "a.tif"
    assert Scene.open(f"zip://{tmp_path}/{zipped(tmp_path)}!in/a.tif").path is None


@pytest.mark.parametrize("suffix", [".msk", ".ovr"])
def test_sidecars_of_a_name_that_is_not_utf8_are_found(tmp_path, suffix):
    plain = write_tiff(tmp_path / "a.tif", mask=np.arange(80) < np.full((60, 1), 40))
    with rasterio.Env(TIFF_USE_OVR=True), rasterio.open(plain, "r+") as ds:
        ds.build_overviews([2], Resampling.average)
    name = os.path.join(tmp_path, os.fsdecode(b"\xff.tif"))
    for side in ("", ".msk", ".ovr"):
        os.rename(plain + side, name + side)
    with Scene.open(name) as scene:
        picture = scene.thumbnail(80)[0]
    assert (picture[:, 41:] == 236).all()
    np.testing.assert_array_equal(picture[:, :39], PICTURE[:, :39])


@pytest.mark.parametrize(
    ("ending", "world"),
    [("tif", "tfw"), ("tif", "wld"), ("png", "pgw"), ("jpg", "jgw"), ("bmp", "bpw")],
)
@pytest.mark.parametrize("where", [b"/\xff", b"/\xff/a"])
def test_the_world_file_of_a_name_that_is_not_utf8_is_found(tmp_path, ending, world, where):
    stem = os.fsdecode(os.fsencode(tmp_path) + where)
    os.makedirs(os.path.dirname(stem), exist_ok=True)
    Image.fromarray(PICTURE).save(tmp_path / f"b.{ending}")
    os.rename(tmp_path / f"b.{ending}", f"{stem}.{ending}")
    with open(f"{stem}.{world}", "w") as file:
        file.write("2\n0\n0\n-2\n500\n600\n")
    with Scene.open(f"{stem}.{ending}") as scene:
        assert scene.georef.transform[:6] == (2, 0, 499, 0, -2, 601)


@pytest.mark.parametrize("driver", ["netCDF", "VRT", "ENVI", "Zarr"])
def test_a_format_of_any_kind_is_read_under_a_name_that_is_not_utf8(tmp_path, monkeypatch, driver):
    monkeypatch.setenv("TMPDIR", str(tmp_path / "links"))
    os.mkdir(tmp_path / "links")
    plain = str(tmp_path / "a.tif")
    if driver == "VRT":
        write_tiff(plain, GREY)
        rasterio.shutil.copy(plain, str(tmp_path / "b.vrt"), driver="VRT")
    else:
        converted(tmp_path, "b.vrt", driver, picture=GREY)
    name = os.path.join(tmp_path, os.fsdecode(b"\xff.vrt"))
    for beside in [f for f in os.listdir(tmp_path) if f.startswith("b.")]:
        os.rename(tmp_path / beside, name.removesuffix(".vrt") + beside[1:])
    # Read as a stream of Python's, a NetCDF hung for ever.
    code = (
        "import os, sys; from geomag_edge.runtime.images.scene import Scene\n"
        "print(Scene.open(os.fsdecode(bytes.fromhex(sys.argv[1]))).thumbnail(80)[0].sum())"
    )
    command = [sys.executable, "-c", code, os.fsencode(name).hex()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.stdout.split() == [str(GREY.astype(int).sum() * 3)], done.stderr
    assert os.listdir(tmp_path / "links") == []


@pytest.mark.parametrize("setting", ["EMPTY_DIR", "TRUE"])
def test_a_setting_for_remote_files_does_not_hide_a_local_mask(tmp_path, setting):
    path = write_tiff(tmp_path / "a.tif", mask=np.arange(80) < np.full((60, 1), 40))
    with rasterio.Env(GDAL_DISABLE_READDIR_ON_OPEN=setting), Scene.open(path) as scene:
        assert (scene.thumbnail(80)[0][:, 40:] == 236).all()


MISSING = {
    "path": lambda p: p / "no.tif",
    "null byte after a file": lambda p: write_tiff(p / "a.tif") + "\0.png",
    "nothing": lambda p: "",
    "part": lambda p: f"netcdf:{p}/no.nc:Band1",
    "zip URL": lambda p: f"zip://{p}/no.zip!a.tif",
    "/vsi path": lambda p: f"/vsizip/{p}/no.zip/a.tif",
    "scheme that nobody knows": lambda p: "foo://bar/a.tif",
    "not UTF-8": lambda p: os.fsdecode(os.fsencode(p) + b"/\xe9.tif"),
    "broken link": lambda p: (p / "a.tif").symlink_to(p / "no.tif") or p / "a.tif",
}


@pytest.mark.parametrize("kind", MISSING)
def test_a_name_with_nothing_behind_it_is_said_to_have_none(tmp_path, kind):
    with pytest.raises(ImageError, match=r"no image at .*: check the path") as error:
        Scene.open(MISSING[kind](tmp_path))
    assert "\n" not in str(error.value)


def test_an_address_that_nobody_answers_at_is_one_line(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with pytest.raises(ImageError, match=r"cannot read http://127.*; check the address") as error:
        Scene.open("http://127.0.0.1:9/a.tif")
    assert "\n" not in str(error.value)


def test_a_missing_source_of_a_vrt_is_not_mistaken_for_the_vrt(tmp_path):
    converted(tmp_path, "a.vrt", "VRT")
    with pytest.raises(ImageError, match=r"cannot read .*a\.vrt: .*source\.tif"):
        Scene.open(tmp_path / "a.vrt")


def test_a_folder_that_is_no_image_says_so(tmp_path):
    with pytest.raises(ImageError, match="is a directory: give an image file, or a folder that is"):
        Scene.open(tmp_path)


# What a decoder says


def after_marker(marker, junk):
    def harm(data):
        at = data.index(marker)
        return data[:at] + junk + data[at:]

    return harm


def png_chunk_after_header(kind, body):
    import zlib

    chunk = len(body).to_bytes(4, "big") + kind + body + zlib.crc32(kind + body).to_bytes(4, "big")
    return lambda data: data[:33] + chunk + data[33:]


HARMLESS = {
    "JPEG, bytes before a table": (
        "JPEG", after_marker(b"\xff\xdb", b"\0\0"), "2 extraneous bytes",
    ),
    "JPEG, bytes before a restart": (
        "JPEG", after_marker(b"\xff\xd3", b"\0" * 6), "6 extraneous bytes before marker 0xd3",
    ),
    "JPEG, bytes after the end": ("JPEG", lambda data: data + b"\0" * 99, None),
    "PNG, colour profile": ("PNG", png_chunk_after_header(b"iCCP", b"x\0\0ab"), "iCCP"),
    "PNG, checksum of a text": (
        "PNG", lambda d: png_chunk_after_header(b"tEXt", b"a\0b")(d).replace(b"a\0b", b"a\0c"),
        "tEXt: CRC error",
    ),
    "PNG, bytes after the end": ("PNG", lambda data: data + b"junk", None),
}  # fmt: skip


@pytest.mark.parametrize("kind", HARMLESS)
def test_what_a_decoder_only_warns_of_is_a_note(tmp_path, capfd, kind):
    encoder, harm, warning = HARMLESS[kind]
    path = tmp_path / f"a.{encoder.lower()}"
    Image.fromarray(PICTURE).save(path, restart_marker_blocks=4)
    with Scene.open(path) as scene:
        expected = scene.thumbnail(100)[0]
    path.write_bytes(harm(path.read_bytes()))
    with Scene.open(path) as scene:
        np.testing.assert_array_equal(scene.thumbnail(100)[0], expected)
        notes = scene.notes
    assert len(notes) == (warning is not None)
    assert all(n.startswith("read, though GDAL warns: lib") and warning in n for n in notes)
    assert capfd.readouterr() == ("", "")


def test_a_warning_that_comes_while_an_image_is_read_by_windows_is_a_note(tmp_path, monkeypatch):
    monkeypatch.setattr(scene_module, "WHOLE_IMAGE_PX", 0)
    _, harm, warning = HARMLESS["JPEG, bytes before a restart"]
    Image.fromarray(PICTURE).save(tmp_path / "a.jpg", restart_marker_blocks=4)
    (tmp_path / "a.jpg").write_bytes(harm((tmp_path / "a.jpg").read_bytes()))
    with Scene.open(tmp_path / "a.jpg") as scene:
        assert scene.notes == ()
        scene.notes = ("of the engine",)  # as a pipeline puts its own before them
        for _ in range(2):
            scene.crop(np.array([[0, 0, 80, 80]], np.float32), np.ones((2, 3), np.float32), 80)
    assert scene.notes[0] == "of the engine"
    assert warning in scene.notes[1]
    assert len(scene.notes) == 2


@pytest.mark.parametrize("ending", ["jpeg", "png", "gif", "bmp", "webp", "tif", "jp2"])
@pytest.mark.parametrize("share", [0.5, 0.9])
def test_a_file_that_was_cut_short_is_refused_in_every_format(tmp_path, ending, share):
    path = tmp_path / f"a.{ending}"
    rough = np.random.default_rng(5).integers(0, 250, (200, 200, 3), dtype=np.uint8)
    Image.fromarray(rough).save(path)
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    with pytest.raises(ImageError, match=r"cannot read|is a truncated PNG") as error:
        Scene.open(path)
    assert "\n" not in str(error.value)
    assert "GDAL_ERROR_ON" not in str(error.value)


def in_gzip(path):
    path.with_suffix(".gz").write_bytes(gzip.compress(path.read_bytes()))
    return f"/vsigzip/{path.with_suffix('.gz')}"


def in_a_larger_file(path):
    data = path.read_bytes()
    path.write_bytes(b"0123456789" + data + b"end")
    return f"/vsisubfile/10_{len(data)},{path}"


def in_a_vrt(path):
    target = path.with_suffix(".vrt")
    rasterio.shutil.copy(str(path), str(target), driver="VRT")
    return str(target)


WAYS_TO_A_PNG = {
    "path": str,
    "file URL": lambda p: f"file://{p}",
    "vrt URL": lambda p: f"vrt://{p}?bands=1",
    "cached": lambda p: f"/vsicached?chunk_size=65536&file={p}",
    "part of a file": in_a_larger_file,
    "gzip": in_gzip,
    "VRT": in_a_vrt,
    "name that is not UTF-8": lambda p: p.rename(p.parent / os.fsdecode(b"\xff.png")),
}


@pytest.mark.parametrize("way", WAYS_TO_A_PNG)
@pytest.mark.parametrize("share", [0.5, 0.999, 1])
def test_a_png_that_was_cut_short_is_refused_whatever_the_way_to_it(tmp_path, way, share):
    path = tmp_path / "a.png"
    rough = np.random.default_rng(5).integers(0, 250, (200, 200, 3), dtype=np.uint8)
    Image.fromarray(rough).save(path)
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    name = WAYS_TO_A_PNG[way](path)
    if share == 1:
        with Scene.open(name) as scene:
            assert scene.height == 200
        return
    with pytest.raises(ImageError, match=r"a truncated PNG") as error:
        Scene.open(name)
    assert "\n" not in str(error.value)


# What a file says of itself


PAM = "<PAMDataset>{}</PAMDataset>"
GARBLED = {
    "CRS in a sidecar": {".tif.aux.xml": PAM.format("<SRS>GEOGCS[broken</SRS>")},
    "CRS of control points": {
        ".tif.aux.xml": PAM.format(
            '<GCPList Projection="GEOGCS[broken"><GCP Id="1" Pixel="0" Line="0" X="1" Y="2"/>'
            '<GCP Id="2" Pixel="9" Line="9" X="3" Y="4"/></GCPList>'
        )
    },
    "incomplete RPCs": {"_RPC.TXT": "LINE_OFF: junk\nSAMP_OFF: 3\n"},
    "RPCs that are no numbers": {
        ".tif.aux.xml": PAM.format(
            '<Metadata domain="RPC"><MDI key="LINE_OFF">junk</MDI></Metadata>'
        )
    },
    "name that is not UTF-8": {
        ".tif.aux.xml": PAM.format(
            '<PAMRasterBand band="1"><Description>r\xe9d</Description></PAMRasterBand>'
        )
    },
}


@pytest.mark.parametrize("kind", GARBLED)
def test_what_a_file_says_garbled_of_itself_is_left_out_with_a_note(tmp_path, capfd, kind):
    path = write_tiff(tmp_path / "a.tif", PICTURE)
    for ending, text in GARBLED[kind].items():
        (tmp_path / f"a{ending}").write_bytes(text.encode("latin-1"))
    with Scene.open(path) as scene:
        np.testing.assert_array_equal(scene.thumbnail(100)[0], PICTURE)
        assert scene.georef.crs is None
        assert any("cannot be read and is left out: " in note for note in scene.notes)
        assert all("\n" not in note for note in scene.notes)
    assert capfd.readouterr().err == ""


def test_a_palette_without_colours_is_left_out_with_a_note(tmp_path):
    grey = write_tiff(tmp_path / "a.tif", PICTURE[..., :1])
    (tmp_path / "a.vrt").write_text(
        '<VRTDataset rasterXSize="80" rasterYSize="60"><VRTRasterBand dataType="Byte" band="1">'
        f"<ColorInterp>Palette</ColorInterp><SimpleSource><SourceFilename>{grey}</SourceFilename>"
        "<SourceBand>1</SourceBand></SimpleSource></VRTRasterBand></VRTDataset>"
    )
    with Scene.open(tmp_path / "a.vrt") as scene:
        np.testing.assert_array_equal(scene.thumbnail(100)[0][..., 1], PICTURE[..., 0])
        assert scene.notes[0].startswith("its colour table cannot be read and is left out: ")


def test_a_file_that_vanishes_between_reads_is_an_image_error(tmp_path, monkeypatch):
    monkeypatch.setattr(scene_module, "WHOLE_IMAGE_PX", 0)
    folder = tmp_path / "a.zarr"
    converted(tmp_path, "a.zarr", "Zarr", BLOCKSIZE="1,20,20")
    scene = Scene.open(folder)
    for chunk in folder.rglob("*"):
        if chunk.is_file() and not chunk.name.startswith("."):
            chunk.write_bytes(b"\x01")
    with scene, pytest.raises(ImageError, match=r"cannot read .*zarr"):
        scene.crop(np.array([[0, 0, 80, 80]], np.float32), np.ones((2, 3), np.float32), 16)
