"""PscCrop inside a TensorRT engine: an ahead-of-time quick plugin (TensorRT 10.9 and newer).

The kernel's PTX is embedded in the engine, so neither Python nor a library is needed where it
runs. `register()` before parsing an ONNX file with the node `geomag::PscCrop`; the parser then
takes the plugin instead of the node's function body.

TensorRT has no uint8 tensors for plugins: the graph for this target declares `image` as int8 and
the caller binds the same bytes. Boxes cannot be checked inside an engine: a bad one gives a view
of NaN. Targets without quick plugins (TensorRT below 10.9, TensorRT for RTX) cut the graph before
the crops and call the kernel between engines.

State of proof: never run by TensorRT, nor on a GPU. The tests drive these functions with a stand-in
for `tensorrt.plugin` and check the kernel's PTX, the argument order and the launch arithmetic.
"""

import functools
from typing import Any

from geomag_edge.errors import MissingExtraError

from .cuda_image import compile_ptx
from .layout import BLOCK_THREADS, TILE_ROWS, tile_columns

PLUGIN_ID = "geomag::PscCrop"
KERNEL = "geomag_psc_crop_trt"


@functools.cache
def register(architecture: int = 75) -> None:
    """Register the plugin with TensorRT, once a process.

    Args:
        architecture: the oldest compute capability that the engine must run on, as a number.

    Raises:
        MissingExtraError: TensorRT 10.9 or newer, or a compiler for the kernel, is not installed.
        KernelError: the compiler refused the kernel.
    """
    try:
        import tensorrt as trt
        import tensorrt.plugin as trtp

        register_plugin, autotune, aot_impl = trtp.register, trtp.autotune, trtp.aot_impl
    except (ImportError, AttributeError) as cause:
        raise MissingExtraError(
            "PscCrop as a TensorRT plugin needs TensorRT 10.9 or newer; on older ones export "
            "psc_select.onnx and crop between engines"
        ) from cause
    ptx = compile_ptx(architecture)

    # TensorRT reads these signatures: names are the node's attributes, types its own classes.
    def describe(
        image: trtp.TensorDesc, boxes: trtp.TensorDesc, mean_std: trtp.TensorDesc, size: int
    ) -> trtp.TensorDesc:
        shape = trtp.ShapeExprs.from_tuple((boxes.shape_expr[0], 3, size, size))
        return trtp.from_shape_expr(shape, dtype=trt.float32)

    def choose_types(
        image: trtp.TensorDesc,
        boxes: trtp.TensorDesc,
        mean_std: trtp.TensorDesc,
        outputs: tuple[trtp.TensorDesc],
    ) -> list[trtp.AutoTuneCombination]:
        return [trtp.AutoTuneCombination("INT8, FP32, FP32, FP32")]

    def implement(
        image: trtp.TensorDesc,
        boxes: trtp.TensorDesc,
        mean_std: trtp.TensorDesc,
        size: int,
        outputs: tuple[trtp.TensorDesc],
        tactic: int,
    ) -> tuple[Any, Any, Any, Any]:
        launch, extra = launch_of(trtp, image.shape_expr, boxes.shape_expr, size)
        return KERNEL, ptx.decode().rstrip("\0"), launch, extra

    register_plugin(PLUGIN_ID)(describe)
    autotune(PLUGIN_ID)(choose_types)
    aot_impl(PLUGIN_ID)(implement)


def launch_of(trtp: Any, image_shape: Any, boxes_shape: Any, size: int) -> tuple[Any, Any]:
    """The plugin's launch as symbolic expressions of the input shapes.

    Args:
        trtp: the module `tensorrt.plugin`.
        image_shape: symbolic [H, W, 3].
        boxes_shape: symbolic [K, 4].
        size: side S of a view, in pixels.

    Returns:
        The launch parameters, and the kernel's integer arguments between its inputs and its
        output: height, width, size, columns of a tile.
    """
    columns = tile_columns(size)
    launch = trtp.KernelLaunchParams()
    launch.grid_x = boxes_shape[0] * -(-size // columns)
    launch.grid_y = -(-size // TILE_ROWS)
    launch.block_x = BLOCK_THREADS
    launch.shared_mem = 0  # the kernel's own is static
    values = (image_shape[0], image_shape[1], size, columns)
    extra = trtp.SymIntExprs(len(values))
    for index, value in enumerate(values):
        extra[index] = trtp.SymInt32(value)
    return launch, extra
