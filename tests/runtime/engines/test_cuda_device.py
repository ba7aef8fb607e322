"""The device layer on a stand-in for CUDA that does everything late and overwrites freed memory."""

import gc
import sys
import weakref

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from geomag_edge.errors import EngineError, MissingExtraError
from geomag_edge.runtime.engines.cuda import refusals
from geomag_edge.runtime.engines.cuda.device import EXACT_BYTES, HOST_KEPT_BYTES, _Lease
from geomag_edge.runtime.engines.cuda.driver import CudaDriver
from geomag_edge.runtime.engines.cuda.feeds import on_device
from geomag_edge.runtime.engines.cuda.replay import GRAPHS_KEPT, Replays
from geomag_edge.runtime.engines.cuda.values import DeviceValues
from geomag_edge.runtime.engines.tensorrt.flavour import Flavour, started
from geomag_edge.runtime.images.scene import Scene
from tests.runtime.late_cuda import CAPTURE, array_at


def some(*shape, dtype=np.float32):
    return np.random.default_rng(sum(shape)).normal(size=shape).astype(dtype) * 10


@pytest.mark.parametrize("integrated", [False, True])
@pytest.mark.parametrize("n", [0, 1, 1000, 2_000_000])
def test_what_goes_up_comes_back(make_device, integrated, n):
    device = make_device(integrated=integrated)
    array = some(n)
    expected = array.copy()
    up = device.upload(array, "it")
    array[:] = 0  # the caller may do this at once
    np.testing.assert_array_equal(device.download({"it": up})["it"], expected)


def test_staging_memory_is_not_used_again_before_the_copy_is_done(device):
    arrays = [np.full(100, i, np.int64) for i in range(20)]
    up = [device.upload(a, "it") for a in arrays]
    for array, there in zip(arrays, up, strict=True):
        np.testing.assert_array_equal(there.numpy(), array)


def test_memory_that_is_let_go_serves_work_asked_for_before(device):
    a = device.upload(some(4, 8), "a")
    both = device.concat([a, device.upload(some(3, 8), "b")])
    del a
    device.upload(some(1000), "other")
    np.testing.assert_array_equal(both.numpy(), np.concatenate([some(4, 8), some(3, 8)]))


def test_copies_are_counted_by_name(device):
    up = device.upload(np.zeros((4, 4), np.float32), "views")
    up.numpy("masks")
    up[1].numpy("masks")
    assert device.to_device_bytes == {"views": 64}
    assert device.to_host_bytes == {"masks": 80}


def test_shared_memory_takes_no_copies(make_device):
    device = make_device(integrated=True)
    up = device.upload(some(5, 7), "it")
    np.testing.assert_array_equal(up[2].numpy(), some(5, 7)[2])
    token = device.argmax(device.upload(some(1, 1, 9), "logits"))
    assert token.numpy()[0, 0] == some(1, 1, 9).argmax()
    assert not device.to_device_bytes
    assert not device.to_host_bytes


def test_shared_memory_is_not_lent_again_while_an_array_uses_it(make_device):
    device = make_device(integrated=True)
    first = device.upload(np.arange(64), "a")
    device.sync()
    device.upload(np.zeros(64, np.int64), "b")
    np.testing.assert_array_equal(first.numpy(), np.arange(64))


@given(data=st.data())
def test_parts_are_numpys(make_device, data):
    device = make_device()
    shape = data.draw(st.lists(st.integers(1, 4), min_size=1, max_size=4))
    array = some(*shape)
    key = []
    for length in shape[: data.draw(st.integers(0, len(shape) - 1))]:
        key.append(data.draw(st.integers(-length, length - 1)))
    if len(key) < len(shape):
        ends = st.none() | st.integers(-5, 5)
        key.append(slice(data.draw(ends), data.draw(ends)))
    part = device.upload(array, "it")[tuple(key)]
    expected = array[tuple(key)]
    assert part.shape == expected.shape
    np.testing.assert_array_equal(part.numpy(), expected)
    np.testing.assert_array_equal(part.reshape(-1).numpy(), expected.reshape(-1))


def test_an_index_out_of_range_is_refused(device):
    array = device.upload(np.zeros((2, 3), np.float32), "it")
    for key in (2, -3, (0, 3)):
        with pytest.raises(IndexError, match="out of range"):
            array[key]
    with pytest.raises(IndexError, match="step 1"):
        array[::2]
    with pytest.raises(ValueError, match="reshape"):
        array.reshape(4, -1)


def test_a_device_array_is_not_copied_unasked(device):
    with pytest.raises(EngineError, match=r"not copied unasked: call its numpy\(\)"):
        np.asarray(device.upload(some(3), "it"))


def test_neighbours_are_joined_without_a_copy(device):
    array = device.upload(some(6, 5), "it")
    before = device.driver.allocations
    joined = device.stack([array[1], array[2], array[3]])
    assert device.driver.allocations == before
    np.testing.assert_array_equal(joined.numpy(), some(6, 5)[1:4])
    swapped = device.stack([array[3], array[1]])
    np.testing.assert_array_equal(swapped.numpy(), some(6, 5)[[3, 1]])


def test_joined_parts_take_the_wider_float(device):
    half = device.upload(some(2, 3, dtype=np.float16), "half")
    joined = device.concat([half, device.upload(some(1, 3), "single")])
    assert joined.dtype == np.float32
    expected = np.concatenate([some(2, 3, dtype=np.float16).astype(np.float32), some(1, 3)])
    np.testing.assert_array_equal(joined.numpy(), expected)


def test_rows_that_do_not_fit_are_refused(device):
    with pytest.raises(ValueError, match="cannot join"):
        device.concat([device.upload(some(2, 3), "a"), device.upload(some(2, 4), "b")])


def test_views_share_their_memory_with_other_libraries(device):
    array = device.upload(some(4, 6), "it")[1:3]
    face = array.__cuda_array_interface__
    assert face["shape"] == (2, 6)
    assert face["data"] == (array.pointer, False)
    assert (face["typestr"], face["strides"], face["stream"]) == ("<f4", None, 77)
    assert array.__dlpack_device__() == (2, 0)


class Foreign:
    """An array of another library: the CUDA Array Interface and nothing else."""

    def __init__(self, array, strides=None):
        self.array = array
        self.__cuda_array_interface__ = {
            "shape": array.shape, "typestr": array.dtype.str, "version": 3,
            "data": (array.ctypes.data, False), "strides": strides,
        }  # fmt: skip


def test_arrays_of_other_libraries_are_used_where_they_lie(device):
    theirs = Foreign(some(3, 4))
    ours = on_device(device, {"x": theirs}, {"x": np.dtype(np.float32)})["x"]
    assert ours.pointer == theirs.array.ctypes.data
    assert ours.owner is theirs
    assert not device.to_device_bytes
    cast = on_device(device, {"x": theirs}, {"x": np.dtype(np.float16)})["x"]
    np.testing.assert_array_equal(cast.numpy(), some(3, 4).astype(np.float16))


def test_feeds_that_do_not_fit_are_refused(device):
    wants = {"x": np.dtype(np.float32)}
    with pytest.raises(EngineError, match="needs the input 'x'"):
        on_device(device, {}, wants)
    with pytest.raises(EngineError, match="no input 'y': it has x"):
        on_device(device, {"x": some(1), "y": some(1)}, wants)
    with pytest.raises(EngineError, match=r"not contiguous.*contiguous\(\)"):
        on_device(device, {"x": Foreign(some(2, 2), strides=(4, 8))}, wants)
    with pytest.raises(EngineError, match="int64 cannot be used as float32"):
        on_device(device, {"x": device.upload(np.arange(3), "x")}, wants)


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_the_likeliest_token_is_the_first_of_the_largest(device, dtype):
    logits = np.zeros((1, 1, 1000), dtype)
    logits[0, 0, [17, 400]] = 3
    values = DeviceValues(device, np.float32)
    token, ids = values.choose(device.upload(logits, "logits"))
    assert token == 17
    assert (ids.shape, ids.dtype, ids.numpy()[0, 0]) == ((1, 1), np.int64, 17)


def test_misaligned_parts_are_moved(device):
    array = device.upload(some(3, 5), "it")
    assert device.aligned(array) is array
    moved = device.aligned(array[1])
    assert moved.pointer % 256 == 0
    np.testing.assert_array_equal(moved.numpy(), some(3, 5)[1])


def test_views_are_cut_on_the_device_and_the_image_goes_up_once(device, picture):
    values = DeviceValues(device, np.float16)
    scene = Scene.open(picture)
    mean_std = np.array([[0.5] * 3, [0.25] * 3], np.float32)
    boxes = np.array([[0, 0, 300, 300], [-20, -20, 420, 420]], np.float32)
    for part in (boxes, boxes[:1]):
        views = values.crop(scene, part, mean_std, 32)
        np.testing.assert_array_equal(views.numpy(), scene.crop(part, mean_std, 32, "float16"))
    assert device.to_device_bytes["image"] == picture.nbytes


class Doubled:
    """A session's work for `Replays`: y = 2 x."""

    def __init__(self, device):
        self.device, self.enqueued, self.made, self.broken = device, 0, 0, False

    def outputs_for(self, feeds, keep):
        return {"y": self.device.empty(feeds["x"].shape, np.float32, for_host="y" not in keep)}

    def recordable(self):
        return True

    def fresh(self):
        self.made += 1
        return self

    def enqueue(self, feeds, outputs, stream):
        x, y = feeds["x"], outputs["y"]
        self.enqueued += 1
        if self.broken:
            raise EngineError("no such shape")
        if self.device.driver.recording is not None and self.device.driver.refuses == "during":
            raise EngineError("operation not permitted when stream is capturing")

        def double():
            view = array_at
            view(y.pointer, y.shape, np.float32)[:] = 2 * view(x.pointer, x.shape, np.float32)

        self.device.driver.put(double, stream)


@pytest.mark.parametrize("integrated", [False, True])
@pytest.mark.parametrize("keep", [frozenset(), frozenset({"y"})])
def test_the_third_call_of_a_kind_is_replayed(make_device, keep, integrated):
    device = make_device(integrated=integrated)
    work = Doubled(device)
    replays = Replays(device, work)
    kept = []
    for call in range(6):
        x = np.full((2, 3), call, np.float32)
        y = replays.run({"x": device.upload(x, "x")}, keep)["y"]
        kept.append(y)
        np.testing.assert_array_equal(y.numpy(), 2 * x)
    assert replays.replayed == 4
    assert work.enqueued == 3  # plainly twice, and once to be recorded
    assert work.made == 1  # a recording has a state of its own
    if keep:
        for call, y in enumerate(kept):
            np.testing.assert_array_equal(y.numpy(), np.full((2, 3), 2 * call))


def test_every_shape_has_its_own_recording_and_old_ones_go(device):
    replays = Replays(device, Doubled(device))
    for _ in range(3):
        for n in range(1, GRAPHS_KEPT + 3):
            y = replays.run({"x": device.upload(some(n), "x")}, frozenset())["y"]
            np.testing.assert_array_equal(y.numpy(), 2 * some(n))
    assert len(replays._recorded) == GRAPHS_KEPT


@pytest.mark.parametrize("where", CAPTURE)
@pytest.mark.parametrize("keep", [frozenset(), frozenset({"y"})])
def test_what_cannot_be_recorded_or_replayed_runs_plainly(make_device, where, keep):
    device = make_device(refuses=where)
    work = Doubled(device)
    replays = Replays(device, work)
    kept = []
    for n in (3, 3, 3, 4, 4, 4, 3):
        x = np.full((2, n), n + len(kept), np.float32)
        kept.append(replays.run({"x": device.upload(x, "x")}, keep)["y"])
        np.testing.assert_array_equal(kept[-1].numpy(), 2 * x)
    assert replays.refused
    assert replays.replayed == device.driver.replays == 0
    assert work.made == 1  # tried once, not for each shape
    assert not replays._recorded
    if keep:
        np.testing.assert_array_equal(kept[0].numpy(), np.full((2, 3), 6))


def test_a_call_that_fails_by_itself_says_nothing_of_recordings(device):
    work = Doubled(device)
    replays, x = Replays(device, work), device.upload(some(4), "x")
    # First calls that fail, and a second one (its rehearsal, then the plain run, too).
    for work.broken in (True, True, False, True, False, False):
        if work.broken:
            with pytest.raises(EngineError, match="no such shape"):
                replays.run({"x": x}, frozenset())
        else:
            y = replays.run({"x": x}, frozenset())["y"]
            np.testing.assert_array_equal(y.numpy(), 2 * some(4))
    assert replays.refused is None
    assert replays.replayed == 1


def test_a_recording_for_which_there_is_no_memory_is_done_without(make_device):
    device, kept = make_device(), frozenset({"y"})
    replays, x = Replays(device, Doubled(device)), device.upload(some(8_000), "x")
    replays.run({"x": x}, kept)
    device.sync()
    device.trim()
    device.driver.memory_bytes = device.driver.used_bytes + 40_000  # for one more array
    for _ in range(3):
        y = replays.run({"x": x}, kept)["y"]
    device.driver.memory_bytes = 1 << 30
    np.testing.assert_array_equal(y.numpy(), 2 * some(8_000))
    assert "MB of memory left" in replays.refused


def test_recordings_write_for_the_host_only_what_it_reads(make_device):
    device = make_device(integrated=True)
    for keep, leased in ((frozenset({"y"}), False), (frozenset(), True)):
        replays = Replays(device, Doubled(device))
        for _ in range(3):
            replays.run({"x": device.upload(some(5), "x")}, keep)
        [call] = replays._recorded.values()
        assert isinstance(call.outputs["y"].owner, _Lease) == leased
        assert not isinstance(call.feeds["x"].owner, _Lease)
        device.sync()


# memory


def test_an_image_is_staged_once_into_memory_of_the_device(make_device):
    device = make_device(integrated=True)
    image = some(5_000_001).astype(np.uint8)
    up = device.upload(image, "image", stays=True)
    image[:] = 0  # the caller may do this at once
    assert device.driver.page_locked_bytes == 0
    assert device.driver.used_bytes == 5_000_001
    np.testing.assert_array_equal(up.numpy(), some(5_000_001).astype(np.uint8))


def test_large_page_locked_memory_is_exact_and_little_is_kept(make_device):
    device = make_device(integrated=True)
    up = [device.upload(np.zeros(EXACT_BYTES + i, np.uint8), "it") for i in range(1, 60)]
    assert device.driver.page_locked_bytes == sum(a.nbytes for a in up)
    up.clear()
    device.sync()
    assert HOST_KEPT_BYTES // 2 < device.driver.page_locked_bytes <= HOST_KEPT_BYTES
    device.trim()
    assert device.driver.page_locked_bytes == 0


def test_memory_returned_by_another_thread_while_one_waits_is_not_lent_yet(device):
    """Its copy may have been asked for after the wait began."""
    plain, late = device.driver.sync, [device._host.lease(100)]

    def sync():
        plain()
        late.clear()

    device.driver.sync = sync
    device.sync()
    assert len(device._host.returned) == 1
    assert not device._host._free
    device.driver.sync = plain
    device.sync()
    assert len(device._host._free) == 1


def test_memory_that_lies_unused_is_given_back_before_there_is_none(make_device):
    device = make_device(memory_bytes=1000)
    for _ in range(5):
        array = device.empty((600,), np.uint8)
        del array
    array = device.empty((600,), np.uint8)
    with pytest.raises(EngineError, match=r"the GPU has no 0\.1 MB of memory left: ") as caught:
        device.empty((600,), np.uint8)
    assert "\n" not in str(caught.value)
    assert array.nbytes == 600


def gpu_present():
    try:
        CudaDriver()
    except (MissingExtraError, EngineError):
        return False
    return True


@pytest.mark.skipif(gpu_present(), reason="there is a GPU")
def test_without_a_driver_one_line_says_so():
    pytest.importorskip("cuda.core")
    with pytest.raises(EngineError, match=r"no usable NVIDIA driver and GPU here: .*--engine ort-"
                       ) as caught:  # fmt: skip
        CudaDriver()
    assert "\n" not in str(caught.value)


def test_without_cuda_python_one_line_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "cuda", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'geomag-edge\[cuda\]'"):
        CudaDriver()


def test_a_failed_call_of_the_bindings_names_what_was_tried():
    with pytest.raises(EngineError, match="launching a CUDA graph failed: 700"):
        refusals.value_of((700, None), "launching a CUDA graph")


@pytest.mark.skipif(not gpu_present(), reason="needs a GPU")
def test_a_gpu_does_what_the_stand_in_does(picture):
    from geomag_edge.runtime.engines.cuda.device import Device

    device = Device(CudaDriver())
    half = device.cast(device.upload(some(1000), "x"), np.float16)
    np.testing.assert_array_equal(half.numpy(), some(1000).astype(np.float16))
    assert device.argmax(half.reshape(1, 1, -1)).numpy()[0, 0] == half.numpy().argmax()
    joined = device.stack([half[:10], half[20:30]])
    np.testing.assert_array_equal(joined.numpy()[1], half.numpy()[20:30])


def test_another_librarys_array_is_held_until_its_reader_is_done(make_device):
    """Else that library uses the memory anew, on a stream of its own, before it is read."""
    device = make_device(late=True)
    own = device.upload(np.arange(4, dtype=np.float32), "x")

    class Foreign:
        def __init__(self):
            self.__cuda_array_interface__ = {
                "data": (own.pointer, False), "shape": (4,), "typestr": "<f4", "strides": None,
                "version": 3,
            }  # fmt: skip

    value = Foreign()
    gone = weakref.ref(value)
    adopted = device.adopt(value)
    del value, adopted
    gc.collect()
    assert gone() is not None
    device.sync()
    gc.collect()
    assert gone() is None


def test_a_runtime_that_does_not_start_is_one_line():
    def make():
        raise TypeError("pybind11::init(): factory function returned nullptr")

    with pytest.raises(EngineError, match=r"tensorrt 11\.0 does not start here .*older than"):
        started(Flavour("tensorrt", None, "11.0"), make)
