"""Images from strangers: nothing is opened, asked for or waited for that the user did not name."""

import os
import socket
import struct
import threading

import numpy as np
import pytest
import rasterio
import rasterio.shutil
from PIL import Image

from geomag_edge.errors import ImageError
from geomag_edge.runtime.answers.outputs import mask_raster
from geomag_edge.runtime.images.scene import Scene

pytestmark = pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")

PICTURE = np.random.default_rng(3).integers(0, 250, (60, 80, 3), dtype=np.uint8)
SECRET = b"the secret of the machine\n" * 200


def write_tiff(path, picture=PICTURE, **profile):
    with rasterio.open(
        path, "w", driver="GTiff", height=picture.shape[0], width=picture.shape[1],
        count=picture.shape[2], dtype=picture.dtype, **profile,
    ) as ds:  # fmt: skip
        ds.write(np.moveaxis(picture, -1, 0))
    return path


def vrt(bands, size=(60, 80), top=""):
    return (
        f'<VRTDataset rasterXSize="{size[1]}" rasterYSize="{size[0]}">{top}{bands}</VRTDataset>'
    ).encode()


def band(inside, more=""):
    return f'<VRTRasterBand dataType="Byte" band="1"{more}>{inside}</VRTRasterBand>'


def source(name, more='relativeToVRT="1"', kind="SimpleSource"):
    return band(
        f"<{kind}><SourceFilename {more}>{name}</SourceFilename><SourceBand>1</SourceBand></{kind}>"
    )


def raw(name, more=""):
    return vrt(
        band(
            f"<SourceFilename {more}>{name}</SourceFilename><ImageOffset>0</ImageOffset>"
            "<PixelOffset>1</PixelOffset><LineOffset>80</LineOffset>",
            ' subClass="VRTRawRasterBand"',
        )
    )


@pytest.fixture
def secret(tmp_path_factory):
    """A file outside the image's folder, also as a raster."""
    folder = tmp_path_factory.mktemp("machine")
    (folder / "passwd").write_bytes(SECRET)
    write_tiff(folder / "secret.tif")
    return folder


@pytest.fixture
def server():
    """A listening port; what was asked of it."""
    asked = []
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def listen():
            while True:
                try:
                    connection, _ = listening.accept()
                except OSError:
                    return
                asked.append(1)
                connection.close()

        threading.Thread(target=listen, daemon=True).start()
        yield f"http://127.0.0.1:{listening.getsockname()[1]}/a.tif", asked
        listening.shutdown(socket.SHUT_RDWR)


def refused(path):
    with pytest.raises(ImageError) as error:
        Scene.open(path)
    message = str(error.value)
    assert "\n" not in message
    assert len(message) < 500
    return message


WMS = (
    "<GDAL_WMS><Service name='TMS'><ServerUrl>{url}</ServerUrl></Service><DataWindow>"
    "<UpperLeftX>0</UpperLeftX><UpperLeftY>0</UpperLeftY><LowerRightX>80</LowerRightX>"
    "<LowerRightY>60</LowerRightY><SizeX>80</SizeX><SizeY>60</SizeY></DataWindow>"
    "<BandsCount>3</BandsCount></GDAL_WMS>"
)
MRF = (
    "<MRF_META><CachedSource><Source>{file}</Source></CachedSource><Raster><Size x='80' y='60'"
    " c='1'/><PageSize x='16' y='16' c='1'/><Compression>NONE</Compression></Raster></MRF_META>"
)
DIRECTIONS = {
    "raw bytes": lambda s, u: raw(s / "passwd"),
    "file": lambda s, u: vrt(source(s / "secret.tif", "")),
    "address": lambda s, u: vrt(source(f"/vsicurl/{u}", "")),
    "URL": lambda s, u: vrt(source(u, "")),
    "WMS": lambda s, u: WMS.format(url=u).encode(),
    "WCS": lambda s, u: f"<WCS_GDAL><ServiceURL>{u}</ServiceURL></WCS_GDAL>".encode(),
    "MRF": lambda s, u: MRF.format(file=s / "secret.tif").encode(),
    "tile index": lambda s, u: (
        f"<GDALTileIndexDataset><IndexDataset>{s}/i.gpkg</IndexDataset></GDALTileIndexDataset>"
    ).encode(),
    "ERS": lambda s, u: (
        'DatasetHeader Begin\n Version = "6.0"\n DataFile = "{s}/passwd"\n RasterInfo Begin\n'
        "CellType = Unsigned8BitInteger\n NrOfLines = 60\n NrOfCellsPerLine = 80\n NrOfBands = 1\n"
        " RasterInfo End\nDatasetHeader End\n"
    ).replace("{s}", str(s)).encode(),
}  # fmt: skip


@pytest.mark.parametrize("kind", DIRECTIONS)
@pytest.mark.parametrize("name", ["a.png", "a.tif", "a.jp2", "a.vrt", "a"])
def test_a_file_that_only_says_where_to_look_is_refused(tmp_path, secret, server, kind, name):
    url, asked = server
    (tmp_path / name).write_bytes(DIRECTIONS[kind](secret, url))
    refused(tmp_path / name)
    assert not asked


BESIDE = [".ovr", ".OVR", ".msk", ".ovr.ovr", ".ovr.msk"]


@pytest.mark.parametrize("suffix", BESIDE)
@pytest.mark.parametrize("kind", ["raw bytes", "address", "WMS"])
def test_a_sidecar_that_only_says_where_to_look_is_refused(tmp_path, secret, server, suffix, kind):
    url, asked = server
    write_tiff(tmp_path / "a.tif")
    if suffix.count(".") == 2:
        write_tiff(tmp_path / f"a.tif{suffix[:4]}")
    (tmp_path / f"a.tif{suffix}").write_bytes(DIRECTIONS[kind](secret, url))
    assert "it is not opened" in refused(tmp_path / "a.tif")
    assert not asked


def test_a_picture_that_is_a_vrt_to_whoever_looks_for_one_is_a_picture(tmp_path, secret):
    """JPEG whose first bytes, up to a null, hold a VRT: GDAL would open that one."""
    Image.fromarray(PICTURE).save(tmp_path / "a.jpg")
    with Scene.open(tmp_path / "a.jpg") as scene:
        expected = scene.thumbnail(80)[0]
    data = (tmp_path / "a.jpg").read_bytes()
    text = raw(secret / "passwd") + b" " * (0x2020 - 2 - len(raw(secret / "passwd")))
    (tmp_path / "a.jpg").write_bytes(data[:2] + b"\xff\xe1\x20\x20" + text + data[2:])
    with Scene.open(tmp_path / "a.jpg") as scene:
        np.testing.assert_array_equal(scene.thumbnail(80)[0], expected)
    (tmp_path / "a.vrt").write_bytes(vrt(source("a.jpg")))
    assert "VRT under another name" in refused(tmp_path / "a.vrt")


def test_overviews_that_metadata_name_are_not_followed(tmp_path, secret):
    path = write_tiff(tmp_path / "a.tif")
    with rasterio.open(path, "r+") as ds:
        ds.update_tags(ns="OVERVIEWS", OVERVIEW_FILE=str(secret / "secret.tif"))
    assert "names another file as its overviews" in refused(path)


def test_a_vrt_of_files_beside_it_is_read(tmp_path, monkeypatch):
    (tmp_path / "tiles").mkdir()
    write_tiff(tmp_path / "tiles" / "a.tif")
    (tmp_path / "inner.vrt").write_bytes(vrt(source("tiles/a.tif")))
    (tmp_path / "a.VRT").write_bytes(vrt(source("inner.vrt", kind="ComplexSource")))
    monkeypatch.chdir(tmp_path)
    with Scene.open("a.VRT") as scene:
        np.testing.assert_array_equal(scene.thumbnail(80)[0][..., 0], PICTURE[..., 0])


SOURCES = {
    "outside": lambda s: vrt(source(s / "secret.tif", "")),
    "up": lambda s: vrt(source(f"../{s.name}/secret.tif")),
    "relative to anywhere": lambda s: vrt(source("a.tif", "")),
    "address": lambda s: vrt(source("/vsicurl/http://127.0.0.1:9/a.tif", "")),
    "prefix": lambda s: vrt(source("GTIFF_DIR:1:a.tif")),
    "space before it": lambda s: vrt(source(" a.tif")),
    "comment in it": lambda s: vrt(source("a.tif<!-- -->")),
    "CDATA": lambda s: vrt(source("<![CDATA[a.tif]]>")),
    "in an attribute": lambda s: vrt(band('<SimpleSource SourceFilename="a.tif"/>')),
    "raw band": lambda s: raw("a.tif", 'relativeToVRT="1"'),
    "options": lambda s: vrt(source("a.tif</SourceFilename><OpenOptions/><SourceFilename>a.tif")),
    "function": lambda s: vrt(
        band("<PixelFunctionType>sum</PixelFunctionType>", ' subClass="VRTDerivedRasterBand"')
    ),
    "warped": lambda s: vrt(source("a.tif")).replace(b">", b' subClass="VRTWarpedDataset">', 1),
    "instructions": lambda s: b"<?a > <b ?>" + vrt(source("a.tif")),
    "entities": lambda s: b"<!DOCTYPE a [<!ENTITY b 'a.tif'>]>" + vrt(source("a.tif")),
    "not UTF-8": lambda s: vrt(source("a.tif")) + b"<!-- \xe9 -->",
    "pipe": lambda s: vrt(source("pipe")),
    "folder": lambda s: vrt(source(".")),
    "itself": lambda s: vrt(source("a.vrt")),
    "link to outside": lambda s: vrt(source("link.tif")),
    "many layers": lambda s: vrt(source("a.tif") * 200).replace(
        b'</VRTRasterBand><VRTRasterBand dataType="Byte" band="1">', b""
    ),
    "far too large": lambda s: vrt(source("a.tif"), (2_147_483_647, 2_147_483_647)),
    "no number": lambda s: vrt(source("a.tif"), ("nan", "inf")),
    "empty": lambda s: b"<VRTDataset/>",
}


@pytest.mark.parametrize("kind", SOURCES)
def test_a_vrt_of_anything_else_is_refused(tmp_path, secret, kind):
    write_tiff(tmp_path / "a.tif")
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link.tif").symlink_to(secret / "secret.tif")
    (tmp_path / "a.vrt").write_bytes(SOURCES[kind](secret))
    refused(tmp_path / "a.vrt")


@pytest.mark.parametrize("name", ["a.pgw", "a.png.aux.xml", "a.png.msk", "a.ovr", "a_RPC.TXT"])
def test_a_pipe_beside_an_image_is_refused_and_not_waited_for(tmp_path, name):
    Image.fromarray(PICTURE).save(tmp_path / "a.png")
    os.mkfifo(tmp_path / name)
    assert "is a pipe or a device" in refused(tmp_path / "a.png")


STRINGS = {
    "XML": lambda s, u: raw(s / "passwd").decode(),
    "WMS": lambda s, u: f"WMS:{u}?SERVICE=WMS&REQUEST=GetMap&LAYERS=a",
    "WMS's XML": lambda s, u: WMS.format(url=u),
    "memory": lambda s, u: "MEM:::DATAPOINTER=4096,PIXELS=8,LINES=8",
    "derived": lambda s, u: f"DERIVED_SUBDATASET:LOGAMPLITUDE:{s}/secret.tif",
    "VRT in memory": lambda s, u: "vrt://<VRTDataset/>",
    "VRT at an address": lambda s, u: f"vrt:///vsicurl/{u}",
    "tile index": lambda s, u: f"GTI:{s}/passwd",
}


@pytest.mark.parametrize("kind", STRINGS)
def test_a_string_that_names_no_image_is_refused(secret, server, kind):
    url, asked = server
    refused(STRINGS[kind](secret, url))
    assert not asked or kind == "VRT at an address"  # which the user wrote


def test_a_path_is_a_file_and_no_name_that_gdal_knows(tmp_path, monkeypatch):
    from pathlib import Path

    write_tiff(tmp_path / "a.tif")
    monkeypatch.chdir(tmp_path)
    Scene.open("GTIFF_DIR:1:a.tif").close()
    assert "no image at" in refused(Path("GTIFF_DIR:1:a.tif"))


def test_control_points_without_a_crs_are_written_as_they_are(tmp_path):
    write_tiff(tmp_path / "a.tif")
    points = "".join(
        f'<GCP Id="{x}{y}" Pixel="{x}" Line="{y}" X="{x + 5}" Y="{y + 6}"/>'
        for x, y in ((0, 0), (9, 0), (0, 9))
    )
    sidecar = f"<PAMDataset><GCPList>{points}</GCPList></PAMDataset>"
    (tmp_path / "a.tif.aux.xml").write_text(sidecar)
    with Scene.open(tmp_path / "a.tif") as scene:
        assert scene.georef.crs is None
        tiff = mask_raster([], scene, tmp_path)
    with rasterio.MemoryFile(tiff) as memory, memory.open() as ds:
        assert [(p.col, p.x) for p in ds.gcps[0]] == [(0, 5), (9, 14), (0, 5)]
        assert not ds.gcps[1]


def tiff_of(height, width, *more):
    """The header of a little-endian TIFF of one band of bytes, and of nothing else."""
    tags = {256: width, 257: height, 258: 8, 259: 1, 262: 1, 277: 1} | dict(more)
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, v) for tag, v in sorted(tags.items()))
    return struct.pack("<2sHIH", b"II", 42, 8, len(tags)) + entries + bytes(4)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (tiff_of(65536, 65536, (322, 65536), (323, 65536), (324, 0), (325, 0)), "in blocks of"),
        (tiff_of(4_000_000, 4_000_000, (278, 1), (273, 0), (279, 0)), "pixels, more than"),
        (tiff_of(90_000, 90_000, (322, 16), (323, 16), (324, 0), (325, 0)), "blocks of 16 x 16"),
    ],
)
def test_what_a_few_bytes_declare_is_bounded(tmp_path, data, message):
    (tmp_path / "a.tif").write_bytes(data)
    assert message in refused(tmp_path / "a.tif")


@pytest.mark.parametrize("name", ["/dev/zero", "/dev/stdin", "pipe"])
def test_a_pipe_or_a_device_is_no_image(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    os.mkfifo("pipe")
    refused(name)


@pytest.mark.parametrize(
    "name", ["x" * 200_000, " " * 200_000 + "(", "a/" * 100_000, "file://" * 9999]
)
def test_a_name_of_any_length_is_refused_at_once_and_in_short(name):
    refused(name)
