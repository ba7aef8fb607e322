"""What the cases start from: a tiny checkpoint, its bundle, rasters of many kinds and a set."""

from __future__ import annotations

import json
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import rasterio
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)
from numpy.typing import NDArray
from PIL import Image
from rasterio.control import GroundControlPoint
from rasterio.errors import NotGeoreferencedWarning
from rasterio.shutil import copy as copy_raster
from rasterio.transform import from_origin

warnings.simplefilter("ignore", NotGeoreferencedWarning)

HEIGHT, WIDTH = 80, 96
GTIFFS: dict[str, dict[str, object]] = {
    "plain": {}, "tiled": {"tiled": True, "blockxsize": 32, "blockysize": 32},
    "deflate": {"compress": "deflate", "predictor": 2}, "lzw": {"compress": "lzw"},
    "zstd": {"compress": "zstd"}, "jpeg": {"compress": "jpeg", "photometric": "ycbcr"},
    "webp": {"compress": "webp"}, "band": {"interleave": "band"}, "bigtiff": {"bigtiff": "yes"},
    "sparse": {"sparse_ok": True}, "packbits": {"compress": "packbits"},
}  # fmt: skip
COPIES = {
    "cog": ("COG", "tif"), "jp2": ("JP2OpenJPEG", "jp2"), "gpkg": ("GPKG", "gpkg"),
    "hfa": ("HFA", "img"), "envi": ("ENVI", "img"), "netcdf": ("netCDF", "nc"),
    "pcidsk": ("PCIDSK", "pix"), "vrt": ("VRT", "vrt"), "mrf": ("MRF", "mrf"),
    "ers": ("ERS", "ers"), "rst": ("RST", "rst"), "sgi": ("SGI", "rgb"), "nitf": ("NITF", "ntf"),
    "zarr": ("Zarr", "zarr"), "asc": ("AAIGrid", "asc"),
}  # fmt: skip
TYPES = ("uint16", "int16", "int32", "float32", "float64", "complex64", "int8", "uint8")


@dataclass
class World:
    """Where everything lies; nothing in it may be changed.

    Attributes:
        checkpoint, bundle: folders; the bundle is signed by `root/key.pem`.
        rasters: a folder for each kind of raster; `picture` is one of them.
        questions: a set's folder.
        opened: files of the bundle, relative, that `run` cannot answer without.
    """

    root: Path
    checkpoint: Path
    bundle: Path
    rasters: dict[str, Path]
    picture: Path
    questions: Path
    opened: list[str]


def build(root: Path) -> World:
    """Makes the world in a folder, or finds it there."""
    from geomag_edge.export.exporter import export_bundle
    from geomag_edge.model.presets import save_checkpoint
    from tests.conftest import MAIN_FAMILY, tiny_config, tiny_model, train_tokenizers

    checkpoint, bundle, rasters = root / "checkpoint", root / "bundle", root / "rasters"
    if not (bundle / "bundle.json").is_file():
        tokenizers = train_tokenizers()
        model = tiny_model(tiny_config(MAIN_FAMILY, tokenizers[0].get_vocab_size()))
        save_checkpoint(model, *tokenizers, checkpoint)
        key = Ed25519PrivateKey.generate()
        private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        public = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
        (root / "key.pem").write_bytes(private)
        (root / "key.pub").write_bytes(public)
        export_bundle(checkpoint, bundle, force=True, sign=root / "key.pem")
    if not (rasters / "done").is_file():
        make_rasters(rasters)
        (rasters / "done").touch()
    questions = make_questions(root / "set")
    found = {p.name: p for p in sorted(rasters.iterdir()) if p.is_dir()}
    return World(
        root, checkpoint, bundle, found, rasters / "png" / "scene.png", questions, opened(bundle)
    )


def opened(bundle: Path) -> list[str]:
    """Files that ort-cpu opens; the graph of PSC alone is for other engines."""
    listed = json.loads((bundle / "bundle.json").read_text())["files"]
    spared = ("psc.onnx", "psc.onnx.data")
    return [n for n in listed if not n.startswith("reference/") and Path(n).name not in spared]


def pixels(bands: int = 3, dtype: str = "uint8") -> NDArray[np.generic]:
    """Blocks and noise, [bands, HEIGHT, WIDTH]."""
    rng = np.random.default_rng(11)
    blocks = rng.integers(0, 200, (bands, HEIGHT // 16, WIDTH // 16)).repeat(16, 1).repeat(16, 2)
    found = blocks + rng.integers(0, 55, blocks.shape)
    return (found / (2 if dtype == "int8" else 1)).astype(dtype)


def make_rasters(root: Path) -> None:
    """One folder for each kind; kinds that this GDAL cannot write are left out."""
    for name, options in GTIFFS.items():
        _gtiff(_new(root, name) / "scene.tif", **options)
    for dtype in TYPES:
        _gtiff(_new(root, f"type-{dtype}") / "scene.tif", dtype=dtype)
    for bands in (1, 2, 4, 8):
        _gtiff(_new(root, f"bands-{bands}") / "scene.tif", bands=bands)
    for name, form in {
        "png": "png", "jpg": "jpeg", "gif": "gif", "bmp": "bmp", "webp-file": "webp", "ppm": "ppm"
    }.items():  # fmt: skip
        Image.fromarray(np.moveaxis(pixels(), 0, -1)).save(_new(root, name) / f"scene.{form}")
    _gtiff(_new(root, "nodata") / "scene.tif", nodata=0)
    _with_parts(_new(root, "masked") / "scene.tif")
    _with_gcps(_new(root, "gcps") / "scene.tif")
    for name, (driver, suffix) in COPIES.items():
        folder = _new(root, name)
        source = root / ("bands-1" if driver == "AAIGrid" else "plain") / "scene.tif"
        if driver == "VRT":
            source = folder / "part.tif"
            source.write_bytes((root / "plain" / "scene.tif").read_bytes())
        try:
            copy_raster(source, folder / f"scene.{suffix}", driver=driver)
        except Exception:  # not in this build
            for path in sorted(folder.rglob("*"), reverse=True):
                path.unlink() if path.is_file() else path.rmdir()
            folder.rmdir()


def _new(root: Path, name: str) -> Path:
    folder = root / name
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _gtiff(path: Path, bands: int = 3, dtype: str = "uint8", **options: object) -> None:
    profile = {
        "driver": "GTiff", "height": HEIGHT, "width": WIDTH, "count": bands, "dtype": dtype,
        "crs": "EPSG:32633", "transform": from_origin(500_000, 5_000_000, 2, 2), **options,
    }  # fmt: skip
    with rasterio.open(path, "w", **profile) as out:
        out.write(pixels(bands, dtype))


def _with_parts(path: Path) -> None:
    """Overviews and a mask in files of their own."""
    _gtiff(path)
    with rasterio.Env(TIFF_USE_OVR=True), rasterio.open(path, "r+") as out:
        out.build_overviews([2, 4])
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=False), rasterio.open(path, "r+") as out:
        out.write_mask(pixels(1)[0] > 40)


def _with_gcps(path: Path) -> None:
    with rasterio.open(
        path, "w", driver="GTiff", height=HEIGHT, width=WIDTH, count=3, dtype="uint8"
    ) as out:  # fmt: skip
        corners = ((0, 0), (0, WIDTH), (HEIGHT, 0), (HEIGHT, WIDTH))
        points = [GroundControlPoint(r, c, 10 + c / 1e4, 50 - r / 1e4) for r, c in corners]
        out.gcps = points, rasterio.crs.CRS.from_epsg(4326)
        out.write(pixels())


def make_questions(root: Path) -> Path:
    """A set of nine questions about one image, with a mask."""
    for name in ("images", "masks"):
        (root / name).mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.moveaxis(pixels(), 0, -1)).save(root / "images" / "a.png")
    Image.fromarray((pixels(1)[0] > 128).astype(np.uint8)).save(root / "masks" / "a.png")
    (root / "questions.jsonl").write_text("".join(json.dumps(r) + "\n" for r in RECORDS))
    return root


_KINDS: list[dict[str, object]] = [
    {"level": "image", "kind": "count", "prompt": "how many ships are there?", "answer": "two"},
    {"level": "region", "kind": "box", "prompt": "find the box of the ship",
     "boxes": [[4, 5, 40, 50]]},
    {"level": "pixel", "kind": "mask", "prompt": "segment the ships", "mask": "masks/a.png",
     "mask_ids": [1]},
]  # fmt: skip
RECORDS = [{"id": f"q{i}", "image": "images/a.png", **_KINDS[i % 3]} for i in range(9)]
