"""What a scene can contain: classes, colours, sizes in metres and surface materials.

Colours are the words that prompts use. Sizes come in tiers with a gap between them, so that
"small" and "large" never meet.
"""

from __future__ import annotations

CLASSES = (
    "building",
    "road",
    "ship",
    "aircraft",
    "vehicle",
    "storage tank",
    "tree",
    "field",
    "water",
    "solar panel",
)
"""Classes that prompts count, find and segment."""

LANDMARKS = ("pier", "runway", "parking lot", "forest")
"""Classes that prompts use as neighbours and may segment."""

ALL_CLASSES = CLASSES + LANDMARKS

SCENE_CLASSES = (
    "harbour",
    "industrial",
    "airport",
    "residential",
    "farmland",
    "forest",
    "lake",
    "commercial",
    "solar farm",
)

COLOURS: dict[str, tuple[int, int, int]] = {
    "white": (226, 226, 222),
    "grey": (136, 138, 140),
    "black": (42, 43, 47),
    "red": (172, 52, 44),
    "blue": (48, 92, 164),
    "green": (62, 122, 74),
    "yellow": (218, 186, 62),
    "orange": (214, 118, 46),
    "brown": (126, 88, 62),
}

CLASS_COLOURS: dict[str, tuple[str, ...]] = {
    "building": ("grey", "white", "brown", "red", "blue"),
    "ship": ("white", "red", "blue", "black", "grey", "green", "orange"),
    "aircraft": ("white", "grey", "blue", "red"),
    "vehicle": ("white", "black", "grey", "red", "blue", "yellow"),
    "storage tank": ("white", "grey", "green", "orange"),
    "tree": ("green", "brown", "orange"),
    "field": ("green", "brown", "yellow"),
    "water": ("blue",),
    "solar panel": ("blue", "black"),
    "road": ("grey", "brown"),
    "pier": ("grey",),
    "runway": ("grey",),
    "parking lot": ("grey",),
    "forest": ("green", "brown"),
}

SIZES = ("small", "large")

SHIP_LENGTH_M = {"small": (9.0, 24.0), "large": (55.0, 190.0)}
AIRCRAFT_LENGTH_M = {"small": (9.0, 14.0), "large": (30.0, 48.0)}
VEHICLE_LENGTH_M = {"small": (4.2, 5.0), "large": (10.0, 16.5)}
TANK_DIAMETER_M = {"small": (8.0, 14.0), "large": (22.0, 40.0)}
TREE_DIAMETER_M = {"small": (3.5, 6.0), "large": (9.0, 13.0)}
BUILDING_AREA_M2 = 400.0
"""A building below this is small; footprints between 260 and 560 square metres are avoided."""
FIELD_AREA_M2 = 9000.0
WATER_AREA_M2 = 6000.0

# Material ids; the texture table in `texture.py` has one row for each.
PAINT, ASPHALT, CONCRETE, GRASS, SOIL, FOREST, WATER, ROOF, CANOPY, GRAVEL = range(10)

SEASONS = ("spring", "summer", "autumn", "winter")

GROUND: dict[str, dict[str, tuple[int, int, int]]] = {
    "spring": {"grass": (98, 116, 66), "forest": (54, 76, 42), "tree": (66, 92, 48)},
    "summer": {"grass": (104, 112, 70), "forest": (42, 64, 38), "tree": (52, 78, 42)},
    "autumn": {"grass": (120, 112, 74), "forest": (86, 72, 42), "tree": (104, 82, 44)},
    "winter": {"grass": (124, 116, 92), "forest": (74, 70, 56), "tree": (84, 76, 58)},
}
"""Vegetation by season."""

FIELD_RGB = {"green": (76, 112, 58), "brown": (136, 112, 88), "yellow": (186, 168, 108)}
TREE_RGB = {"green": (52, 80, 42), "brown": (96, 82, 60), "orange": (150, 98, 44)}
PANEL_RGB = {"blue": (38, 56, 104), "black": (34, 36, 46)}
ASPHALT_RGB = (104, 105, 106)
CONCRETE_RGB = (172, 169, 160)
DIRT_RGB = (158, 136, 106)
WATER_RGB = ((34, 62, 80), (44, 78, 86), (30, 52, 72), (56, 84, 84))
