"""Which bands are red, green and blue: what the file says, with its reason, never by half."""

import numpy as np
import pytest
import rasterio
from hypothesis import given
from hypothesis import strategies as st
from rasterio.enums import ColorInterp

from geomag_edge.errors import ImageError
from geomag_edge.runtime.images.bands import BandInfo, chosen_bands
from geomag_edge.runtime.images.scene import Scene

pytestmark = pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")


def chosen(*names, interpretation=(), tags=(), about=""):
    colours = range(1, len(names) + 1)
    return chosen_bands(None, BandInfo(interpretation, names, tags, about, colours))


COLOUR_WORDS = [
    ("blue", "green", "red", "nir"),
    ("Blue", "Green", "Red", "NIR"),
    ("B", "G", "R", "N"),
    ("Band 1: blue", "Band 2: green", "Band 3: red", "Band 4: near infrared"),
    ("blue (490 nm)", "green (560 nm)", "red (665 nm)", "red edge (705 nm)"),
    ("sr_blue", "sr_green", "sr_red", "sr_rededge"),
    ("B2 (Blue)", "B3 (Green)", "B4 (Red)", "B5 (Vegetation Red Edge)"),
]
NUMBERS = [
    ("B02", "B03", "B04", "B08"),
    ("B2", "B3", "B4", "B8A"),
    ("SR_B2", "SR_B3", "SR_B4", "SR_B5"),
    ("T31UFS_20200615_B02_10m", "T31UFS_20200615_B03_10m", "T31UFS_20200615_B04_10m", "SCL"),
    ("SR_B1", "SR_B2", "SR_B3", "SR_B4", "SR_B5", "SR_B7"),
    ("SR_B1", "SR_B2", "SR_B3", "ST_B6"),
    ("LE07_L2SP_SR_B1", "LE07_L2SP_SR_B2", "LE07_L2SP_SR_B3", "LE07_L2SP_SR_B4"),
]


@pytest.mark.parametrize("names", COLOUR_WORDS)
def test_bands_named_blue_green_red_are_put_in_order(names):
    bands, note = chosen(*names)
    assert bands == (3, 2, 1)
    assert note == "bands 3,2,1 of 4 taken as red, green, blue, by their names"


@pytest.mark.parametrize("names", NUMBERS)
def test_bands_numbered_by_their_satellite_are_put_in_order(names):
    bands, note = chosen(*names)
    assert bands == (3, 2, 1)
    assert note.endswith("by their names, as their satellite numbers them")


@pytest.mark.parametrize(
    ("about", "expected"),
    [
        ("", (4, 3, 2)),
        ("LANDSAT_8", (4, 3, 2)),
        ("LANDSAT_5 TM", (3, 2, 1)),
        ("LT05_L1TP_224078_2011", (3, 2, 1)),
        ("LE07_L1TP_224078_2011", (3, 2, 1)),
        ("MOD09GA", (1, 4, 3)),
        ("ASTER", (1, 2, 3)),
    ],
)
def test_numbers_mean_what_they_mean_for_the_sensor_that_the_file_names(about, expected):
    assert chosen(*(f"B{i}" for i in range(1, 8)), about=about)[0] == expected


def test_numbers_of_the_file_win_over_the_places_of_its_bands():
    everything = [f"B{i}" for i in range(1, 9)] + ["B8A", "B9", "B10", "B11", "B12"]
    assert chosen(*everything)[0] == (4, 3, 2)
    assert chosen(*reversed(everything))[0] == (10, 11, 12)
    assert chosen("sur_refl_b01", "sur_refl_b02", "sur_refl_b03", "sur_refl_b04")[0] == (1, 4, 3)


@pytest.mark.parametrize(
    "tags",
    [
        [{"wavelength": str(nm), "wavelength_units": "Nanometers"} for nm in (443, 492, 559, 665)],
        [{"WAVELENGTH": str(nm), "WAVELENGTH_UNIT": "nm"} for nm in (443, 490, 560, 665)],
        [{"CENTRAL_WAVELENGTH_UM": str(um)} for um in (0.443, 0.482, 0.561, 0.655)],
        [{"wavelength": str(um)} for um in (0.443, 0.482, 0.561, 0.655)],
        [{"wavelength": f"{nm:.3e}"} for nm in (443, 482, 561, 655)],
        [{"wavelength": f"{nm:.2E}", "wavelength_units": "nm"} for nm in (443, 482, 561, 655)],
        [{"central_wavelength_um": f"{um:e}"} for um in (0.443, 0.482, 0.561, 0.655)],
        [{"wavelength": str(um).replace(".", ",")} for um in (0.443, 0.482, 0.561, 0.655)],
    ],
)
def test_wavelengths_tell_the_colours(tags):
    bands, note = chosen(None, None, None, None, tags=tags)
    assert bands == (4, 3, 2)
    assert note.endswith("by their wavelengths")


def test_a_spectrometer_is_shown_by_the_bands_next_to_each_colour():
    centres = np.arange(400, 1000, 7)
    bands, _ = chosen(*(f"({nm}.000000 Nanometers)" for nm in centres))
    assert [centres[b - 1] for b in bands] == pytest.approx([660, 560, 485], abs=4)


@pytest.mark.parametrize(
    "names",
    [
        (None, None, None, None),
        ("red", None, None, None),
        ("nir", "red", "green", "swir"),
        ("red", "red", "red", "red"),
        ("red edge 1", "green", "blue", "nir"),
        ("red/blue", "green", "blue", "ndvi"),
        ("Band 1", "Band 2", "Band 3", "Band 4"),
        ("B1", "B2", "B3", "B4"),
        ("band1", "band2", "band3", "band4"),
        ("B8", "B3", "B2", "B11"),
    ],
)
def test_names_that_tell_only_some_colours_tell_none(names):
    bands, note = chosen(*names)
    assert bands == (1, 2, 3)
    assert note.endswith("the first of them, as nothing names all three colours")


def test_the_plainest_name_of_a_colour_counts():
    names = ("coastal_blue", "blue", "green_i", "green", "yellow", "red", "rededge", "nir")
    assert chosen(*names)[0] == (6, 4, 2)


RGB = [ColorInterp.red, ColorInterp.green, ColorInterp.blue, ColorInterp.undefined]


def test_colour_interpretation_comes_first_and_a_contradiction_is_said():
    bands, note = chosen("blue", "green", "red", "nir", interpretation=RGB)
    assert bands == (1, 2, 3)
    assert "by their colour interpretation; their names say 3,2,1, which --bands 3,2,1" in note
    half = [ColorInterp.red, *[ColorInterp.undefined] * 3]
    assert chosen("blue", "green", "red", "nir", interpretation=half)[0] == (3, 2, 1)


@given(names=st.lists(st.none() | st.text(max_size=12), min_size=1, max_size=9), about=st.text())
def test_any_names_give_bands_that_exist(names, about):
    bands, _ = chosen(*names, about=about)
    assert set(bands) <= set(range(1, len(names) + 1))
    assert len(set(bands)) == min(3, len(names))


@pytest.mark.parametrize("where", ["description", "tag"])
def test_a_file_is_shown_by_the_names_of_its_bands(tmp_path, where):
    values = np.random.default_rng(0).integers(0, 250, (4, 20, 30), dtype=np.uint8)
    with rasterio.open(
        tmp_path / "a.tif", "w", driver="GTiff", height=20, width=30, count=4, dtype="uint8",
        photometric="MINISBLACK",
    ) as ds:  # fmt: skip
        ds.write(values)
        for i, name in enumerate(("blue", "green", "red", "nir"), 1):
            if where == "tag":
                ds.update_tags(i, BandName=name)
            else:
                ds.set_band_description(i, name)
    with Scene.open(tmp_path / "a.tif") as scene:
        np.testing.assert_array_equal(scene.thumbnail(100)[0], np.moveaxis(values[[2, 1, 0]], 0, 2))
    with Scene.open(tmp_path / "a.tif", bands=(4, 3, 2)) as scene:
        assert scene.notes == ("bands 4,3,2 of 4 taken as red, green, blue",)


@pytest.mark.parametrize(
    ("count", "alpha", "note"),
    [
        (4, 1, None),
        (4, 4, None),
        (2, 2, None),
        (5, 5, "bands 1,2,3 of 5 taken as red, green, blue"),
        (5, 1, "bands 2,3,4 of 5 taken as red, green, blue"),
    ],
)
def test_a_note_counts_bands_and_not_colours(count, alpha, note):
    colours = [band for band in range(1, count + 1) if band != alpha]
    chosen, said = chosen_bands(None, BandInfo((), [None] * count, colours=colours))
    assert alpha not in chosen
    assert said is None if note is None else said.startswith(note)
    with pytest.raises(ImageError, match=f"no band {alpha} .* it has .*band"):
        chosen_bands([alpha], BandInfo((), [None] * count, colours=colours))
