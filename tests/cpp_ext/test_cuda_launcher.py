"""The CUDA launcher from end to end, with host memory for device memory and the emulated kernel
body for the GPU: a stand-in for cuda.core that launches for real, only slowly.
"""

import ctypes
import sys
import types

import numpy as np
import pytest

from geomag_edge.cpp_ext import cuda, psc_crop
from geomag_edge.cpp_ext.layout import tile_columns
from geomag_edge.errors import BoxError, ImageError, InputError, KernelError


class OnDevice:
    """A host array that pretends to be in device memory, as pycuda and CuPy arrays present it."""

    def __init__(self, array):
        self.array = array
        self.__cuda_array_interface__ = {
            "shape": array.shape,
            "typestr": array.dtype.str,
            "data": (array.ctypes.data, False),
            "strides": None if array.flags.c_contiguous else array.strides,
            "version": 3,
        }


class Stream:
    waited = 0

    def __init__(self, handle=0):
        self.handle = handle

    def sync(self):
        Stream.waited += 1

    from_handle = classmethod(lambda cls, handle: cls(handle))


class Buffer:
    living = 0

    def __init__(self, size):
        self.memory = (ctypes.c_uint8 * size)()
        self.handle = ctypes.addressof(self.memory)
        Buffer.living += 1

    def close(self, stream):
        assert isinstance(stream, Stream)
        Buffer.living -= 1


class Device:
    device_id = 0
    default_stream = Stream()
    missing = False
    properties = types.SimpleNamespace(pageable_memory_access=False)

    def set_current(self):
        if Device.missing:
            raise RuntimeError("no driver\nand a second line")

    def allocate(self, size, *, stream):
        assert isinstance(stream, Stream)
        return Buffer(size)


class View:
    def __init__(self, value, stream_ptr):
        interface = value.__cuda_array_interface__
        self.shape, self.dtype = interface["shape"], np.dtype(interface["typestr"])
        self.ptr = interface["data"][0]
        self.is_device_accessible = True
        strides = interface.get("strides")
        self.strides = strides and tuple(step // self.dtype.itemsize for step in strides)


@pytest.fixture
def launches(monkeypatch, emulation):
    """Install the stand-in; the list of (kernel, stream handle) launched so far."""
    made = []

    def launch(stream, config, kernel, *arguments):
        image, height, width, row, pixel, channel, boxes, mean_std, size, columns, out = arguments
        assert all(type(address) is int for address in (image, boxes, mean_std, out))
        blocks_x, blocks_y = config["grid"]
        n_boxes = blocks_x // -(-size.value // tile_columns(size.value))
        assert blocks_y == -(-size.value // 8)
        assert config["block"] == 128
        made.append((kernel, stream.handle))
        emulation(
            *(image, height, width, row, pixel, channel, boxes, n_boxes),
            *(mean_std, size, columns, out, kernel.endswith("f16")),
        )

    def copy_to_device(target, source, n_bytes, stream):
        ctypes.memmove(target, source, n_bytes)
        return (0,)

    modules = {
        name: types.ModuleType(name)
        for name in (
            "cuda",
            "cuda.core",
            "cuda.core.utils",
            "cuda.bindings",
            "cuda.bindings.driver",
        )
    }
    core, driver = modules["cuda.core"], modules["cuda.bindings.driver"]
    core.Device, core.Stream, core.launch, core.LaunchConfig = Device, Stream, launch, dict
    modules["cuda"].core, modules["cuda.bindings"].driver = core, driver
    modules["cuda.core.utils"].StridedMemoryView = View
    driver.cuMemcpyHtoDAsync = copy_to_device
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr(cuda, "_kernel", lambda device_id, name: name)
    monkeypatch.setattr(Buffer, "living", 0)
    monkeypatch.setattr(Device, "missing", False)
    return made


def read(views):
    """A DeviceViews' memory as an array."""
    interface = views.__cuda_array_interface__
    count = int(np.prod(interface["shape"]))
    dtype = np.dtype(interface["typestr"])
    memory = (ctypes.c_uint8 * (count * dtype.itemsize)).from_address(interface["data"][0])
    return np.frombuffer(memory, dtype).reshape(interface["shape"])


BOXES = np.array([[3.5, 4.25, 90, 95.5], [-30, -30, 220, 220]], np.float32)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_a_launch_makes_the_cpu_kernels_views(dtype, launches, scene, mean_std):
    views = cuda.psc_crop_cuda(OnDevice(scene), BOXES, mean_std, 12, dtype)
    expected = psc_crop(scene, BOXES, mean_std, 12, dtype)
    assert views.shape == (2, 3, 12, 12)
    assert np.abs(read(views).astype(np.float64) - expected).max() <= 2e-3
    assert launches == [(f"geomag_psc_crop_f{dtype[-2:]}", 0)]
    assert Buffer.living == 1  # the views; the copies of boxes and mean_std are given back


def test_boxes_on_the_host_are_waited_for_where_the_device_reads_them_there(
    launches, scene, mean_std, monkeypatch
):
    monkeypatch.setattr(Stream, "waited", 0)
    for reads, waits in ((False, 0), (True, 1)):
        properties = types.SimpleNamespace(pageable_memory_access=reads)
        monkeypatch.setattr(Device, "properties", properties)
        cuda.psc_crop_cuda(OnDevice(scene), BOXES, mean_std, 12)
        assert Stream.waited == waits
        cuda.psc_crop_cuda(OnDevice(scene), OnDevice(BOXES), OnDevice(mean_std), 12)
        assert Stream.waited == waits


def test_everything_may_be_on_the_device_already(launches, scene, mean_std):
    out = np.zeros((2, 3, 9, 9), np.float32)
    device_out = OnDevice(out)
    arguments = OnDevice(scene), OnDevice(BOXES), OnDevice(mean_std), 9
    assert cuda.psc_crop_cuda(*arguments, out=device_out) is device_out
    assert np.abs(out - psc_crop(scene, BOXES, mean_std, 9)).max() <= 1e-5
    assert Buffer.living == 0


def test_planar_and_padded_images_are_read_in_place(launches, scene, mean_std):
    planar = np.ascontiguousarray(scene.transpose(2, 0, 1)).transpose(1, 2, 0)
    for image in (planar, scene[2:-3, 5:-7], scene[..., ::-1]):
        views = cuda.psc_crop_cuda(OnDevice(image), BOXES, mean_std, 10)
        assert np.abs(read(views) - psc_crop(image, BOXES, mean_std, 10)).max() <= 1e-5


def test_no_boxes_launch_nothing(launches, scene, mean_std):
    views = cuda.psc_crop_cuda(OnDevice(scene), np.zeros((0, 4), np.float32), mean_std, 12)
    assert views.shape == (0, 3, 12, 12)
    assert launches == []


@pytest.mark.parametrize(
    "stream",
    [
        Stream(7),
        7,
        types.SimpleNamespace(cuda_stream=7),
        types.SimpleNamespace(__cuda_stream__=lambda: (0, 7)),
    ],
    ids=["cuda.core", "handle", "torch", "protocol"],
)
def test_the_callers_stream_is_used(stream, launches, scene, mean_std):
    cuda.psc_crop_cuda(OnDevice(scene), BOXES, mean_std, 8, stream=stream)
    assert launches == [("geomag_psc_crop_f32", 7)]


def test_what_cannot_be_launched_is_refused(launches, scene, mean_std):
    image = OnDevice(scene)
    with pytest.raises(ImageError, match="not in device memory"):
        cuda.psc_crop_cuda(scene, BOXES, mean_std, 8)
    with pytest.raises(ImageError, match=r"expected uint8 \[H, W, 3\]"):
        cuda.psc_crop_cuda(OnDevice(scene[..., 0]), BOXES, mean_std, 8)
    with pytest.raises(ImageError, match="neither interleaved nor planar"):
        cuda.psc_crop_cuda(OnDevice(scene[:, ::2]), BOXES, mean_std, 8)
    with pytest.raises(BoxError, match=r"box 0 .* is inverted"):
        cuda.psc_crop_cuda(image, [[5, 0, 1, 1]], mean_std, 8)
    with pytest.raises(BoxError, match="contiguous float32"):
        cuda.psc_crop_cuda(image, OnDevice(BOXES.astype(np.float64)), mean_std, 8)
    with pytest.raises(BoxError, match=r"expected \[K, 4\]"):
        cuda.psc_crop_cuda(image, OnDevice(BOXES[0]), mean_std, 8)
    with pytest.raises(InputError, match=r"mean_std has shape"):
        cuda.psc_crop_cuda(image, BOXES, OnDevice(mean_std[:1]), 8)
    with pytest.raises(InputError, match=r"out must be float32 \[2, 3, 8, 8\]"):
        cuda.psc_crop_cuda(image, BOXES, mean_std, 8, out=OnDevice(np.zeros((2, 3, 8, 9), "f4")))
    wrong = np.zeros((2, 3, 8, 16), np.float32)[..., ::2]
    with pytest.raises(InputError, match="out must be contiguous"):
        cuda.psc_crop_cuda(image, BOXES, mean_std, 8, out=OnDevice(wrong))
    with pytest.raises(InputError, match="stream is str"):
        cuda.psc_crop_cuda(image, BOXES, mean_std, 8, stream="mine")
    assert launches == []


def test_a_missing_driver_is_one_line(launches, monkeypatch, scene, mean_std):
    monkeypatch.setattr(Device, "missing", True)
    with pytest.raises(KernelError, match=r"^no usable CUDA driver and device here: no driver$"):
        cuda.psc_crop_cuda(OnDevice(scene), BOXES, mean_std, 8)
