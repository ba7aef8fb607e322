"""Rasters from strangers: spoilt files of every kind, and some made to do harm."""

from __future__ import annotations

import os
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path

import rasterio
from numpy.random import Generator

from .jail import Case, Outside
from .mutate import NUMBERS, TEXTS, pick, spoil_bytes, spoil_text
from .world import World

TEXT_FILES = {".vrt", ".xml", ".hdr", ".asc", ".ers", ".mrf", ".rdc", ".prj", ".tfw", ".json"}
PROMPTS = ("segment the ships near the pier", "how many planes are there?", "find the box")


def make(rng: Generator, world: World, outside: Outside, folder: Path) -> Case:
    """`run` on an image that is not what it should be."""
    given = folder / "in"
    given.mkdir()
    names = forbidden(outside, given)
    build = pick(rng, (_spoilt, _spoilt, _spoilt, _renamed, _sidecar, _sidecar, _crafted, _crafted))
    image, note = build(rng, world, names, given)
    argv = ["run", str(world.bundle), image, pick(rng, PROMPTS), "-o", str(folder / "out" / "a")]
    argv += ["--max-new-tokens", "4", *_options(rng)]
    return Case(argv, note, folder, folder / "out" / "a")


def forbidden(outside: Outside, given: Path) -> list[str]:
    """Names of things that no file has a right to; `pipe` waits for ever."""
    if not (given / "pipe").exists():
        os.mkfifo(given / "pipe")
    secret = outside.root / "secret.tif"
    return [
        str(secret), f"file://{secret}", f"GTIFF_DIR:1:{secret}", f"vrt://{secret}",
        str(outside.root / "secret.txt"), f"/vsisubfile/0_10,{secret}",
        f"{outside.url}/a.tif", f"/vsicurl/{outside.url}/a.tif", "/vsis3/x/a.tif",
        f"/vsicurl_streaming/{outside.url}/a.tif", f"/vsizip/{outside.root}/secret.zip/secret.tif",
        os.path.relpath(secret, given), str(given / "pipe"), "pipe", "/dev/zero", "/etc/passwd",
        f"WMS:{outside.url}/wms", f"NETCDF:{secret}:a", f'DERIVED_SUBDATASET:LOGAMPLITUDE:{secret}',
    ]  # fmt: skip


def _options(rng: Generator) -> list[str]:
    found = []
    if rng.random() < 0.1:
        found.append(f"--nodata={pick(rng, NUMBERS)}")
    if rng.random() < 0.1:
        found.append(f"--range={pick(rng, NUMBERS)},{pick(rng, NUMBERS)}")
    if rng.random() < 0.1:
        found.append(f"--bands={pick(rng, ('1', '1,1,1', '3,2,1', '0', '9', '1,2', '-1'))}")
    return found


def _copy(rng: Generator, world: World, given: Path, kind: str | None = None) -> tuple[Path, str]:
    """A sound raster in the case's folder; returns its main file."""
    kind = kind or pick(rng, list(world.rasters))
    for path in world.rasters[kind].iterdir():
        if path.is_dir():
            shutil.copytree(path, given / path.name)
        else:
            shutil.copyfile(path, given / path.name)
    return next(p for p in sorted(given.iterdir()) if p.name.startswith("scene.")), kind


def _spoilt(
    rng: Generator, world: World, names: list[str], given: Path
) -> tuple[str, str]:  # fmt: skip
    main, kind = _copy(rng, world, given)
    files = [p for p in given.rglob("*") if p.is_file()]
    path = main if main.is_file() and rng.random() < 0.7 else pick(rng, files)
    how = _spoil(rng, path, names)
    return str(main), f"{kind}: {path.name}: {how}"


def _spoil(rng: Generator, path: Path, names: list[str]) -> str:
    data = path.read_bytes()
    if path.suffix in TEXT_FILES and rng.random() < 0.8:
        data, how = spoil_text(rng, data.decode(errors="replace"), names)
    else:
        data, how = spoil_bytes(rng, data)
    path.write_bytes(data)
    return how


def _renamed(rng: Generator, world: World, names: list[str], given: Path) -> tuple[str, str]:
    """One kind of file under the name of another, and names that are hard to print."""
    main, kind = _copy(rng, world, given)
    odd = (
        b"scene.png", b"scene.tif", b"scene.jpg", b"scene.vrt", b"scene.zip", b"a b",
        b"\xe9t\xe9.tif",
        b"\x1b[31m.tif", "\u202efit.tif".encode(), b"-o", b"a" * 255, b"new\nline.tif", b"scene",
        "\u8239.tif".encode(), b"%s.tif", b"http:.tif", b"a:b", b"{}.tif",
    )  # fmt: skip
    new = Path(os.fsdecode(os.path.join(os.fsencode(given), pick(rng, odd))))
    if main != new and not new.exists():
        main.rename(new)
    return str(new), f"{kind} as {new.name!a}"


def _sidecar(rng: Generator, world: World, names: list[str], given: Path) -> tuple[str, str]:
    """Something beside a sound file that GDAL looks at unasked."""
    main, kind = _copy(rng, world, given, pick(rng, ("plain", "png", "jpg", "gcps", "envi", "bmp")))
    texts = {
        ".aux.xml": AUX, ".tfw": "2\n0\n0\n-2\n500000\n5000000\n", ".wld": "1\n0\n0\n1\n0\n0\n",
        ".prj": 'GEOGCS["x",DATUM["d",SPHEROID["s",6378137,298]],PRIMEM["g",0],UNIT["d",0.0174]]',
        "_RPC.TXT": RPC, ".RPB": "", ".IMD": "", ".ovr": vrt(names[0]), ".msk": vrt(names[0]),
    }  # fmt: skip
    suffix = pick(rng, list(texts))
    whole = suffix in (".aux.xml", ".ovr", ".msk")
    beside = Path(f"{main}{suffix}") if whole else main.with_name(main.stem + suffix)
    if suffix in (".ovr", ".msk") and rng.random() < 0.5:
        data, how = spoil_bytes(rng, world.rasters["plain"].joinpath("scene.tif").read_bytes())
    else:
        data, how = spoil_text(rng, texts[suffix].replace("HERE", pick(rng, names)), names)
    beside.write_bytes(data)
    return str(main), f"{kind} beside {suffix}: {how}"


def _crafted(rng: Generator, world: World, names: list[str], given: Path) -> tuple[str, str]:
    build: Callable[..., tuple[str, str]] = pick(
        rng, (_vast, _vast, _pointer, _pointer, _nested, _typed, _archive)
    )
    return build(rng, world, names, given)


def _vast(rng: Generator, world: World, names: list[str], given: Path) -> tuple[str, str]:
    """A few bytes that declare very many pixels, or very large blocks."""
    side = pick(rng, (20_000, 65_536, 100_000, 1_000_000, 2**31 - 1))
    other = pick(rng, (1, 16, 1000, side))
    dtype = pick(rng, ("uint8", "uint16", "float32", "float64"))
    block = pick(rng, (16, 256, 4096, 65_536))
    if rng.random() < 0.3 or side > 1_000_000:
        path = given / "scene.vrt"
        kind = {"uint8": "Byte", "uint16": "UInt16", "float32": "Float32", "float64": "Float64"}
        bands = "".join(
            f'<VRTRasterBand dataType="{kind[dtype]}" band="{i + 1}"><NoDataValue>0</NoDataValue>'
            "</VRTRasterBand>" for i in range(pick(rng, (1, 3, 300)))
        )  # fmt: skip
        path.write_text(
            f'<VRTDataset rasterXSize="{side}" rasterYSize="{other}">{bands}</VRTDataset>'
        )
        return str(path), f"a VRT of {side} x {other}, {dtype}"
    path = given / pick(rng, ("scene.tif", "scene.png"))
    options = {"nodata": 0} if rng.random() < 0.5 else {}
    try:
        with rasterio.open(
            path, "w", driver="GTiff", width=side, height=other, count=pick(rng, (1, 3)),
            dtype=dtype, tiled=True, blockxsize=block, blockysize=block, sparse_ok=True,
            bigtiff="yes", compress="deflate", **options,
        ):  # fmt: skip
            pass
    except Exception as e:  # more than this GDAL will write
        path.write_bytes(b"")
        return str(path), f"an empty file ({type(e).__name__})"
    return str(path), f"a sparse {side} x {other} of {dtype} in blocks of {block}"


def _pointer(rng: Generator, world: World, names: list[str], given: Path) -> tuple[str, str]:
    """A file that asks for another one to be read."""
    name = pick(rng, names)
    text = pick(rng, (vrt(name), raw_vrt(name), warped(name), WMS.replace("HERE", name),
                      WCS.replace("HERE", name), derived(name),
                      GTI.replace("HERE", name)))  # fmt: skip
    path = given / pick(rng, ("scene.png", "scene.tif", "scene.vrt", "scene.xml", "scene"))
    path.write_text(text)
    return str(path), f"{path.name} that asks for {name}"


def _nested(rng: Generator, world: World, names: list[str], given: Path) -> tuple[str, str]:
    """VRTs of VRTs, each with the next ten times."""
    shutil.copyfile(world.rasters["plain"] / "scene.tif", given / "0.tif")
    inner, depth = "0.tif", int(rng.integers(2, 10))
    for i in range(1, depth):
        (given / f"{i}.vrt").write_text(vrt(inner, times=10))
        inner = f"{i}.vrt"
    if rng.random() < 0.3:
        (given / "1.vrt").write_text(vrt(inner, times=2))  # a circle
    return str(given / inner), f"VRTs {depth} deep"


def _typed(rng: Generator, world: World, names: list[str], given: Path) -> tuple[str, str]:
    """No file at all, but what somebody may type."""
    name = pick(rng, (*[t for t in TEXTS if "\0" not in t], str(given), str(given / "none.tif"),
                      "/dev/null", "/dev/stdin", str(given / "pipe"), "<VRTDataset/>", "MEM:::",
                      "PNG:x", "GTIFF_RAW:x", "/vsimem/", "/vsistdin/",
                      "/vsizip/x.zip"))  # fmt: skip
    return (name if not name.startswith("-") else f"./{name}"), f"typed {name[:40]!a}"


def _archive(rng: Generator, world: World, names: list[str], given: Path) -> tuple[str, str]:
    path = given / "scene.zip"
    with zipfile.ZipFile(path, "w") as out:
        for i in range(pick(rng, (0, 1, 1, 2))):
            inner = pick(rng, ("a.tif", "../a.tif", "/a.tif", "\x1b[1m.tif", "a.vrt", "b/a.png"))
            data = (world.rasters["plain"] / "scene.tif").read_bytes()
            if inner.endswith(".vrt"):
                data = vrt(pick(rng, names)).encode()
            out.writestr(f"{i}{inner}", data)
    if rng.random() < 0.3:
        path.write_bytes(spoil_bytes(rng, path.read_bytes())[0])
    return pick(
        rng, (str(path), f"/vsizip/{path}", f"zip://{path}", f"/vsizip/{path}/0a.tif")
    ), "zip"


def vrt(name: str, times: int = 1) -> str:
    """A VRT whose one band is another raster's."""
    source = (
        f"<SimpleSource><SourceFilename relativeToVRT='{int(not name.startswith('/'))}'>{name}"
        "</SourceFilename><SourceBand>1</SourceBand></SimpleSource>"
    )
    return (
        "<VRTDataset rasterXSize='96' rasterYSize='80'><VRTRasterBand dataType='Byte' band='1'>"
        f"{source * times}</VRTRasterBand></VRTDataset>"
    )


def raw_vrt(name: str) -> str:
    """A VRT whose pixels are the bytes of any file."""
    return (
        "<VRTDataset rasterXSize='9' rasterYSize='9'><VRTRasterBand dataType='Byte' band='1' "
        f"subClass='VRTRawRasterBand'><SourceFilename relativetoVRT='0'>{name}</SourceFilename>"
        "<ImageOffset>0</ImageOffset><PixelOffset>1</PixelOffset><LineOffset>9</LineOffset>"
        "</VRTRasterBand></VRTDataset>"
    )


def warped(name: str) -> str:
    """A VRT that warps another raster."""
    return (
        "<VRTDataset rasterXSize='96' rasterYSize='80' subClass='VRTWarpedDataset'>"
        f"<GDALWarpOptions><SourceDataset relativeToVRT='0'>{name}</SourceDataset>"
        "</GDALWarpOptions></VRTDataset>"
    )


def derived(name: str) -> str:
    """A VRT with a pixel function in Python."""
    return vrt(name).replace(
        "band='1'>",
        "band='1' subClass='VRTDerivedRasterBand'><PixelFunctionLanguage>Python"
        "</PixelFunctionLanguage><PixelFunctionType>os.system</PixelFunctionType>",
    )


AUX = """<PAMDataset>
  <SRS dataAxisToSRSAxisMapping="1,2">EPSG:32633</SRS>
  <GeoTransform>5e5, 2, 0, 5e6, 0, -2</GeoTransform>
  <Metadata><MDI key="AREA_OR_POINT">Area</MDI></Metadata>
  <Metadata domain="GEOLOCATION"><MDI key="X_DATASET">HERE</MDI><MDI key="X_BAND">1</MDI>
  <MDI key="Y_DATASET">HERE</MDI><MDI key="Y_BAND">1</MDI></Metadata>
  <Metadata domain="OVERVIEWS"><MDI key="OVERVIEW_FILE">HERE</MDI></Metadata>
  <PAMRasterBand band="1"><NoDataValue>0</NoDataValue><Scale>2</Scale><Offset>1</Offset>
  <Metadata domain="IMAGERY"><MDI key="CENTRAL_WAVELENGTH_UM">0.665</MDI></Metadata>
  <Metadata domain="OVERVIEWS"><MDI key="OVERVIEW_FILE">HERE</MDI></Metadata>
  </PAMRasterBand>
</PAMDataset>
"""
RPC = "".join(
    f"{name}: {value}\n" for name, value in (
        ("LINE_OFF", 40), ("SAMP_OFF", 48), ("LAT_OFF", 50), ("LONG_OFF", 10), ("HEIGHT_OFF", 0),
        ("LINE_SCALE", 40), ("SAMP_SCALE", 48), ("LAT_SCALE", 0.01), ("LONG_SCALE", 0.01),
        ("HEIGHT_SCALE", 500),
        *((f"{k}_{part}_COEFF_{i}", float(i == 1)) for k in ("LINE", "SAMP")
          for part in ("NUM", "DEN") for i in range(1, 21)),
    )
)  # fmt: skip
WMS = (
    "<GDAL_WMS><Service name='TMS'><ServerUrl>HERE</ServerUrl></Service><DataWindow>"
    "<UpperLeftX>0</UpperLeftX><UpperLeftY>9</UpperLeftY><LowerRightX>9</LowerRightX><LowerRightY>0"
    "</LowerRightY><SizeX>512</SizeX><SizeY>512</SizeY><TileLevel>1</TileLevel></DataWindow>"
    "<BandsCount>3</BandsCount></GDAL_WMS>"
)
WCS = (
    "<WCS_GDAL><ServiceURL>HERE</ServiceURL><Version>1.0.0</Version><CoverageName>a</CoverageName>"
    "</WCS_GDAL>"
)
GTI = "<GDALTileIndexDataset><IndexDataset>HERE</IndexDataset></GDALTileIndexDataset>"
