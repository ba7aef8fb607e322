"""Headers of classic netCDF: what the library would die of is one line here."""

import struct

import numpy as np
import pytest
import rasterio
import rasterio.shutil
from hypothesis import given, settings
from hypothesis import strategies as st
from rasterio.transform import from_origin

from geomag_edge.errors import ImageError
from geomag_edge.runtime.images.scene import Scene
from geomag_edge.runtime.images.vetting.netcdf3 import check_netcdf3

PICTURE = np.random.default_rng(0).integers(0, 256, (1, 60, 80), np.uint8)


def header(version, **odd):
    """A file of one variable [2,3] of bytes, with any of its fields changed."""
    count, offset = (">q" if version == 5 else ">i"), (">i" if version == 1 else ">q")
    fields = {
        "records": 0, "tag": 10, "dimensions": 2, "name": 1, "kind": 1, "values": 3, "sides": 2,
        "side": 1, "type": 1, "begin": 0, "variables": 1,
    } | odd  # fmt: skip

    def number(value):
        return struct.pack(count, value)

    def named(text):
        return number(fields["name"]) + text.ljust(4, b"\0")

    attribute = struct.pack(">i", 12) + number(1) + named(b"u")
    attribute += struct.pack(">i", fields["kind"]) + number(fields["values"]) + b"abc\0"
    out = b"CDF" + bytes([version]) + number(fields["records"])
    out += struct.pack(">i", fields["tag"]) + number(fields["dimensions"])
    out += named(b"y") + number(2) + named(b"x") + number(3)
    out += attribute + struct.pack(">i", 11) + number(fields["variables"]) + named(b"a")
    out += number(fields["sides"]) + number(0) + number(fields["side"]) + attribute
    out += struct.pack(">i", fields["type"]) + number(8) + struct.pack(offset, fields["begin"])
    return out + bytes(8)


@pytest.fixture
def file(tmp_path):
    def written(content):
        path = tmp_path / "a.nc"
        path.write_bytes(content)
        return str(path)

    return written


@pytest.mark.parametrize("version", [1, 2, 5])
def test_a_whole_header_passes(file, version):
    check_netcdf3(file(header(version)))
    check_netcdf3(file(header(version, records=-1)))


@pytest.mark.parametrize("version", [1, 2, 5])
@pytest.mark.parametrize(
    ("odd", "why"),
    [
        ({"dimensions": 2**31 - 1}, "2,147,483,647 dimensions in"),
        ({"dimensions": -1}, "dimensions in"),
        ({"variables": 3000}, "3,000 variables in"),
        ({"variables": 2}, "ends at byte|type|name|sides"),
        ({"tag": 0}, "no list of dimensions"),
        ({"name": 0}, "a name of 0 bytes"),
        ({"name": 257}, "a name of 257 bytes"),
        ({"kind": 0}, "type 0"),
        ({"kind": 12}, "type 12"),
        ({"values": 2**30}, "values in"),
        ({"sides": 1025}, "sides"),
        ({"side": 2}, "dimension 2 of 2"),
        ({"type": -1}, "type"),
        ({"begin": 2**30}, "values at byte"),
    ],
)
def test_a_count_that_cannot_be_is_one_line(file, version, odd, why):
    path = file(header(version, **odd))
    with pytest.raises(ImageError, match=why) as e:
        check_netcdf3(path)
    assert "header is broken" in str(e.value)
    assert "\n" not in str(e.value)
    assert len(str(e.value)) < 300 + len(path)


def test_lists_that_gdal_takes_apart_word_by_word_are_short(file):
    name = struct.pack(">i", 11) + b"coordinates\0"
    words = b"a " * 6000
    attribute = struct.pack(">ii", 12, 1) + name + struct.pack(">ii", 2, len(words)) + words
    rest = struct.pack(">ii", 0, 0)
    with pytest.raises(ImageError, match="a list of 12,000 bytes"):
        check_netcdf3(file(b"CDF\x01" + bytes(4) + bytes(8) + attribute + rest))


def test_members_that_are_looked_for_one_by_one_are_few(file):
    one = struct.pack(">i", 1) + b"a\0\0\0" + struct.pack(">ii", 2, 1) + b"x\0\0\0"
    for count, fits in ((10_000, True), (10_001, False)):
        content = b"CDF\x01" + bytes(4) + bytes(8) + struct.pack(">ii", 12, count) + one * count
        path = file(content + bytes(8))
        if fits:
            check_netcdf3(path)
        else:
            with pytest.raises(ImageError, match="more than 10,000"):
                check_netcdf3(path)


def test_types_of_the_newest_format_are_not_those_of_the_oldest(file):
    check_netcdf3(file(header(5, type=11)))
    with pytest.raises(ImageError, match="type 11"):
        check_netcdf3(file(header(1, type=11)))


@settings(max_examples=200)
@given(st.sampled_from([1, 2, 5]), st.data())
def test_any_part_of_a_header_is_refused(tmp_path_factory, version, data):
    whole = header(version)
    path = tmp_path_factory.getbasetemp() / "part.nc"
    path.write_bytes(whole[: data.draw(st.integers(4, len(whole) - 9))])
    with pytest.raises(ImageError, match="header is broken"):
        check_netcdf3(str(path))


@pytest.mark.parametrize("kind", ["NC", "NC2"])
@pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
def test_what_gdal_writes_is_read_and_its_damage_refused(tmp_path, kind):
    plain, path = tmp_path / "a.tif", tmp_path / "a.nc"
    with rasterio.open(
        plain, "w", driver="GTiff", width=80, height=60, count=1, dtype="uint8",
        crs="EPSG:32633", transform=from_origin(5e5, 5e6, 10, 10),
    ) as ds:  # fmt: skip
        ds.write(PICTURE)
    rasterio.shutil.copy(str(plain), str(path), driver="netCDF", FORMAT=kind)
    with Scene.open(str(path)) as scene:
        assert (scene.height, scene.width) == (60, 80)
    content = bytearray(path.read_bytes())
    content[12:16] = (0xB5000000).to_bytes(4, "big")  # the library asks for 24 GB and dies
    path.write_bytes(content)
    with pytest.raises(ImageError, match="3,036,676,096 dimensions"):
        Scene.open(str(path))
