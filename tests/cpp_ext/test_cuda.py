"""The CUDA launcher and image: what can be proved without a GPU, and a GPU's own
test where there is one.
"""

import ctypes
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

import geomag_edge.cpp_ext
from geomag_edge.cpp_ext import cuda, cuda_image, layout, psc_crop
from geomag_edge.cpp_ext.layout import device_layout, kernel_arguments, launch_grid, tile_columns
from geomag_edge.errors import ImageError, KernelError, MissingExtraError

CSRC = Path(geomag_edge.cpp_ext.__file__).parent / "csrc"
NO_NVCC = "no nvcc on PATH"


def gpu_present():
    try:
        from cuda.core import Device

        Device().set_current()
    except Exception:
        return False
    return True


def header_constant(name):
    text = (CSRC / "psc_block.h").read_text()
    return int(re.search(rf"\b{name} = (\d+)", text).group(1))


def test_python_and_the_header_agree_on_the_block():
    assert header_constant("BLOCK_THREADS") == layout.BLOCK_THREADS
    assert header_constant("TILE_ROWS") == layout.TILE_ROWS


@pytest.mark.parametrize("size", [1, 7, 8, 9, 127, 128, 129, 224, 336, 384, 1000])
def test_the_grid_covers_every_output_pixel_once(size):
    columns = tile_columns(size)
    assert 1 <= columns <= layout.BLOCK_THREADS
    blocks_x, blocks_y = launch_grid(5, size)
    assert blocks_x % 5 == 0
    tiles = blocks_x // 5
    assert (tiles - 1) * columns < size <= tiles * columns
    assert (blocks_y - 1) * layout.TILE_ROWS < size <= blocks_y * layout.TILE_ROWS


def test_arguments_come_in_the_kernels_order_and_width():
    source = (CSRC / "psc_cuda.cu").read_text().replace("\\\n", " ")
    signature = re.search(r"name\(\s*(const psc::u8\* image.*?)\) *\{", source, re.S).group(1)
    declared = [re.match(r"(.*?)(\w+)$", part.strip()).groups() for part in signature.split(",")]
    arguments = kernel_arguments(1, (2, 3, 4, 5, 6), 7, 8, 9, 10)
    assert list(arguments) == [name for _, name in declared]
    for kind, name in declared:
        form = int if "*" in kind else ctypes.c_int64
        assert type(arguments[name]) is form, name


def test_device_images_may_be_interleaved_or_planar_and_nothing_else():
    image = np.zeros((6, 5, 4), np.uint8)
    assert device_layout(image[..., :3].shape, image[..., :3].strides) == (6, 5, 20, 4, 1)
    planar = np.zeros((3, 6, 5), np.uint8).transpose(1, 2, 0)
    assert device_layout(planar.shape, planar.strides) == (6, 5, 5, 1, 30)
    odd = np.zeros((6, 10, 3), np.uint8)[:, ::2]
    with pytest.raises(ImageError, match=r"neither interleaved nor planar.*contiguous copy"):
        device_layout(odd.shape, odd.strides)


@pytest.mark.skipif(gpu_present(), reason="there is a GPU")
def test_without_a_gpu_the_launcher_says_so_in_one_line(scene, mean_std):
    with pytest.raises((MissingExtraError, KernelError)) as caught:
        cuda.psc_crop_cuda(scene, [[0, 0, 1, 1]], mean_std, 4)
    assert "\n" not in str(caught.value)
    assert "CUDA" in str(caught.value)


def test_without_nvcc_the_build_says_what_to_do(monkeypatch, tmp_path):
    monkeypatch.setattr(shutil, "which", lambda name, path=None: None)
    with pytest.raises(KernelError, match=r"nvcc is not on PATH.*NVRTC"):
        cuda_image.build_fatbin(tmp_path)
    assert not list(tmp_path.iterdir())


def test_the_machine_code_has_every_kernel():
    try:
        code = cuda_image.compile_cubin(87)
    except MissingExtraError as missing:
        pytest.skip(str(missing))
    entries = {name.decode() for name in re.findall(rb"\.text\.(\w+)", code)}
    assert entries == {"geomag_psc_crop_f16", "geomag_psc_crop_f32"}


@pytest.mark.slow
@pytest.mark.skipif(cuda_image.find_tool("nvcc") is None, reason=NO_NVCC)
def test_nvcc_compiles_every_architecture_into_one_file(tmp_path):
    target = cuda_image.build_fatbin(tmp_path)
    assert {75, 80, 86, 87, 89, 90} <= set(cuda_image.nvcc_architectures("nvcc"))
    assert target.stat().st_size > 100_000
    assert list(tmp_path.iterdir()) == [target]
    assert cuda_image.find_fatbin(cuda_image.nvcc_major("nvcc"), tmp_path) == target
    written = target.stat().st_mtime_ns
    assert cuda_image.build_fatbin(tmp_path).stat().st_mtime_ns == written


def test_a_driver_gets_the_newest_fat_binary_that_it_loads(tmp_path):
    for major in (12, 13):
        (tmp_path / cuda_image.fatbin_name(major)).write_bytes(b"code")
    assert "-cu13." in cuda_image.find_fatbin(14, tmp_path).name
    assert "-cu13." in cuda_image.find_fatbin(13, tmp_path).name
    assert "-cu12." in cuda_image.find_fatbin(12, tmp_path).name
    assert cuda_image.find_fatbin(11, tmp_path) is None


def test_a_fat_binary_of_other_sources_is_not_loaded(monkeypatch, tmp_path):
    (tmp_path / cuda_image.fatbin_name(13)).write_bytes(b"code")
    changed = tmp_path / "csrc"
    shutil.copytree(cuda_image.SOURCES, changed)
    with (changed / "psc_block.h").open("a") as file:
        file.write("// changed")
    monkeypatch.setattr(cuda_image, "SOURCES", changed)
    assert cuda_image.find_fatbin(13, tmp_path) is None


# Of a multiprocessor: shared memory, and what each block takes beyond its own (CUDA's programming
# guide, technical specifications by compute capability); blocks that psc_block.h says it holds.
MULTIPROCESSORS = {
    75: (64, 0, 2), 80: (164, 1, 4), 86: (100, 1, 3), 87: (164, 1, 4), 89: (100, 1, 3),
    90: (228, 1, 4), 120: (100, 1, 3),
}  # fmt: skip


@pytest.mark.skipif(cuda_image.find_tool("nvcc") is None, reason=NO_NVCC)
@pytest.mark.parametrize(
    "architecture", [pytest.param(a, marks=() if a == 89 else pytest.mark.slow)
                     for a in MULTIPROCESSORS],
)  # fmt: skip
def test_a_multiprocessor_holds_as_many_blocks_as_the_header_says(architecture, tmp_path):
    nvcc = cuda_image.find_tool("nvcc")
    if architecture not in cuda_image.nvcc_architectures(nvcc):
        pytest.skip(f"this nvcc does not know sm_{architecture}")
    flags = ["-std=c++17", "-O3", "-cubin", f"-arch=sm_{architecture}", "-Xptxas", "-v"]
    done = subprocess.run(
        [nvcc, *flags, str(CSRC / "psc_cuda.cu"), "-o", str(tmp_path / "psc.cubin")],
        check=True, capture_output=True, text=True,
    )  # fmt: skip
    assert not re.search(r"[1-9]\d* bytes spill", done.stderr)
    registers = max(int(n) for n in re.findall(r"Used (\d+) registers", done.stderr))
    shared = max(int(n) for n in re.findall(r"(\d+) bytes smem", done.stderr))
    shared_kb, reserved_kb, blocks = MULTIPROCESSORS[architecture]
    # Memory is given in pieces of 128 bytes, registers in pieces of 256 a warp of 32 threads.
    by_shared = shared_kb * 1024 // (-(-shared // 128) * 128 + reserved_kb * 1024)
    warp = -(-registers * 32 // 256) * 256
    by_registers = 4 * (65536 // 4 // warp) // (layout.BLOCK_THREADS // 32)
    assert min(by_shared, by_registers) == blocks


@pytest.mark.skipif(not gpu_present(), reason="needs a GPU")
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_the_gpu_makes_the_cpu_kernels_views(dtype, scene, telling_boxes, mean_std):
    torch = pytest.importorskip("torch")
    image = torch.from_numpy(scene).cuda()
    # Contiguous, padded rows, a cut-out off every alignment, RGBA, planar.
    padded = torch.zeros((149, 224, 3), dtype=torch.uint8, device="cuda")
    padded[:, 5:216] = image
    rgba = torch.cat([image, image[..., :1]], dim=2)[..., :3]
    planar = image.permute(2, 0, 1).contiguous().permute(1, 2, 0)
    for held in (image, padded[:, 5:216], rgba, planar):
        views = cuda.psc_crop_cuda(held, telling_boxes, mean_std, 50, dtype)
        torch.cuda.synchronize()
        made = torch.as_tensor(views, device="cuda").cpu().numpy()
        expected = psc_crop(scene, telling_boxes, mean_std, 50)
        tolerance = 1e-4 if dtype == "float32" else 4e-3
        assert np.abs(made.astype(np.float32) - expected).max() <= tolerance
