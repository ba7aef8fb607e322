"""PROJ's database of coordinate systems: the one that this PROJ came with, and no network."""

from __future__ import annotations

import functools
import os

import rasterio
from rasterio.warp import transform

VARIABLES = "PROJ_DATA", "PROJ_LIB"


@functools.cache
def database_note() -> str | None:
    """Sees to it, once a process, that coordinate systems can be looked up; call it before a file
    is opened, because a CRS that was read without a database is not what the file says.

    A database of another PROJ version, which PROJ_DATA or PROJ_LIB often name, is refused by PROJ.
    Then these variables leave this process's environment and PROJ takes its own. PROJ would also
    download grids where PROJ_NETWORK=ON; an answer must not depend on a network.

    Returns:
        None, or what a user should know: that another database was taken, or that there is none.
    """
    os.environ["PROJ_NETWORK"] = "OFF"
    cause = _why_not_found()
    if cause is None:
        return None
    wrong = {name: os.environ.pop(name) for name in VARIABLES if name in os.environ}
    named = " and ".join(f"{name}={value}" for name, value in wrong.items())
    if wrong and _why_not_found() is None:
        return f"PROJ has no database that it can read at {named}, so it took its own: unset it"
    os.environ.update(wrong)
    remedy = f"change or unset {named}" if wrong else "reinstall rasterio or set PROJ_DATA"
    return f"coordinate systems cannot be looked up on this machine ({cause}): {remedy}"


def _why_not_found() -> str | None:
    """Looks a code up and uses it; PROJ's complaint, or None."""
    try:
        with rasterio.Env():
            lon, lat = transform("EPSG:32631", "EPSG:4326", [500_000.0], [0.0])[:2]
    except Exception as e:  # GDAL's own errors have no public class
        return str(e).strip().splitlines()[0].rstrip(".")
    right = abs(lon[0] - 3) < 1e-6 and abs(lat[0]) < 1e-6
    return None if right else f"EPSG:32631 lies at {lon[0]:g}, {lat[0]:g}"
