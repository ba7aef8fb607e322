"""What an image says about its place on Earth."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from .reading import told


@dataclass(frozen=True)
class Georef:
    """Where an image lies, exactly as its file says it."""

    crs: Any = None
    """`rasterio.crs.CRS`, or None."""
    transform: Any = None
    """`affine.Affine` from pixel (col, row) to the CRS, or None."""
    gcps: tuple[Any, ...] = ()
    """Ground control points, in `crs`, of an image that has them instead of a transform."""
    rpcs: Any = None

    @property
    def is_georeferenced(self) -> bool:
        """Whether pixels can be turned into coordinates of a CRS."""
        return self.crs is not None and self.transform is not None


def georef_of(ds: Any, notes: list[str]) -> Georef:
    """What a dataset says about its place on Earth; `notes` tells what of it is garbled."""
    none: tuple[list[Any], Any] = ([], None)
    gcps, gcp_crs = told(lambda: ds.gcps, none, "its control points", notes)
    transform = None if ds.transform.is_identity else ds.transform
    crs = told(lambda: ds.crs, None, "its coordinate reference system", notes)
    crs = crs or (gcp_crs if gcps else None)
    rpcs = told(lambda: ds.rpcs, None, "its RPCs", notes)
    told(lambda: ds.colorinterp, None, "part of its georeference", notes)  # a late fault of these
    return Georef(crs or None, transform, tuple(gcps) if transform is None else (), rpcs)
