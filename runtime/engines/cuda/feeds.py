"""A session's inputs on the device, in the types that its graph takes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from geomag_edge.errors import EngineError
from geomag_edge.runtime.engines.cuda.array import DeviceArray
from geomag_edge.runtime.engines.cuda.device import Device


def on_device(
    device: Device, feeds: Mapping[str, Any], dtypes: Mapping[str, np.dtype[Any]]
) -> dict[str, DeviceArray]:
    """Host arrays are cast and copied over; device arrays, of any library, are used as they are,
    and cast there where their float type differs.

    Raises:
        EngineError: an input is missing, unknown, or cannot be cast.
    """
    for name in dtypes:
        if name not in feeds:
            raise EngineError(f"the graph needs the input {name!r}, which was not given")
    made = {}
    for name, value in feeds.items():
        if name not in dtypes:
            raise EngineError(f"the graph has no input {name!r}: it has {', '.join(dtypes)}")
        array = device.adopt(value)
        if array is None:
            array = device.upload(np.ascontiguousarray(value, dtypes[name]), name)
        made[name] = device.cast(array, dtypes[name])
    return made
