"""HDF5 files that lead to other files, or hold little that becomes much, whatever dresses it up."""

import struct

import numpy as np
import pytest
import rasterio
import rasterio.shutil

from geomag_edge.errors import ImageError
from geomag_edge.runtime.images.scene import Scene

HEAP = 48
FILES = b"\x01\0\0\0\x01\0\x01\0" + struct.pack("<Q", HEAP)
VIRTUAL = b"\x04\x03" + struct.pack("<QI", HEAP, 1)
MESSAGES = {
    "files, old header": (b"HEAP", b"\x07\0\x28\0\0\0\0\0" + FILES),
    "files, bytes that nobody reads": (
        b"HEAP",
        b"\x07\0\x28\0\xff\7\7\7" + FILES[:1] + b"xyz" + FILES[4:],
    ),
    "files, new header": (b"HEAP", b"OHDR\x02\x20" + bytes(20) + b"\x07\x28\0\0" + FILES),
    "files, far from its header": (b"HEAP", b"OHDR\x02\x20" + bytes(200_000) + FILES),
    "virtual, old header": (b"GCOL", b"\x08\0\x10\0\0\0\0\0" + VIRTUAL),
    "virtual, new header": (b"GCOL", b"OHDR\x02\0\x20\x08\x10\0\0" + VIRTUAL),
    "virtual, version 5": (b"GCOL", b"\x05" + VIRTUAL[1:]),
}
SIDES = struct.pack("<4I", 4000, 1000, 1000, 1)
CHUNKS = {
    "version 1": b"\x01\x04\x02" + bytes(5) + struct.pack("<Q", HEAP) + SIDES,
    "version 3": b"\x03\x02\x04" + struct.pack("<Q", HEAP) + SIDES,
    "version 4": b"\x04\x02\0\x04\x04" + SIDES + b"\x01",
}


def hdf5_of(mark, message):
    """What of an HDF5 file is looked at: its signature, the size of its addresses, what a message
    leads to, and that."""
    start = b"\x89HDF\r\n\x1a\n" + bytes(5) + b"\x08\x08" + bytes(33)
    return start + mark + bytes(60) + message + bytes(40)


def refused(name):
    with pytest.raises(ImageError) as e:
        Scene.open(str(name))
    return str(e.value)


@pytest.mark.parametrize("kind", MESSAGES)
@pytest.mark.parametrize("name", ["{}", "netcdf:{}:Band1", 'HDF5:"{}"://Band1'])
def test_an_hdf5_whose_pixels_lie_elsewhere_is_refused(tmp_path, kind, name):
    for before in (b"", bytes(512)):
        (tmp_path / "a.nc").write_bytes(before + hdf5_of(*MESSAGES[kind]))
        assert "lie in other files" in refused(name.format(tmp_path / "a.nc"))


@pytest.mark.parametrize("kind", CHUNKS)
def test_a_chunk_of_gigabytes_is_refused(tmp_path, kind):
    (tmp_path / "a.h5").write_bytes(hdf5_of(b"TREE", CHUNKS[kind]))
    assert "chunks of 4,000,000,000 bytes" in refused(tmp_path / "a.h5")


def test_addresses_of_another_size_are_refused(tmp_path):
    data = bytearray(hdf5_of(*MESSAGES["files, old header"]))
    data[13] = 4
    (tmp_path / "a.h5").write_bytes(data)
    assert "short addresses" in refused(tmp_path / "a.h5")


@pytest.mark.parametrize("kind", ["NC4C", "NC4"])
def test_an_hdf5_that_holds_its_pixels_is_read(tmp_path, kind):
    grey = np.random.default_rng(0).integers(0, 256, (1, 60, 80), np.uint8)
    with rasterio.open(
        tmp_path / "a.tif", "w", driver="GTiff", width=80, height=60, count=1, dtype="uint8"
    ) as ds:
        ds.write(grey)
    rasterio.shutil.copy(
        str(tmp_path / "a.tif"), str(tmp_path / "a.nc"), driver="netCDF", FORMAT=kind
    )
    with Scene.open(tmp_path / "a.nc") as scene:
        np.testing.assert_array_equal(scene.thumbnail(80)[0], grey[0][..., None].repeat(3, 2))
