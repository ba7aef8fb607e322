"""PscCrop as the torch operator `torch.ops.geomag.psc_crop`; importing this module registers it.

    psc_crop(Tensor image, Tensor boxes, Tensor mean_std, int size) -> Tensor

On CPU tensors it runs the compiled kernel on as many threads as torch uses, on CUDA tensors the
CUDA kernel on the current stream. The fake implementation lets `torch.export` trace it; `onnx_op`
turns it into the node `geomag::PscCrop`. There is no gradient: pixels are where learning stops.
"""

import torch
from torch import Tensor

from .crop import psc_crop as _psc_crop_of_arrays


@torch.library.custom_op("geomag::psc_crop", mutates_args=(), device_types="cpu")
def psc_crop(image: Tensor, boxes: Tensor, mean_std: Tensor, size: int) -> Tensor:
    """Cut windows out of an image and resample each to a normalised square view.

    Args:
        image: uint8 [H, W, 3], any strides.
        boxes: float32 [K, 4], x0, y0, x1, y1 in pixels of the image; on the image's device.
        mean_std: float32 [2, 3], means and standard deviations in 0..1 units.
        size: side S of a view, in pixels.

    Returns:
        float32 [K, 3, S, S] on the image's device, as `geomag_edge.cpp_ext.psc_crop` defines it.

    Raises:
        ImageError, BoxError, InputError, KernelError: as `geomag_edge.cpp_ext.psc_crop` does.
    """
    views = _psc_crop_of_arrays(
        image.detach().numpy(),
        boxes.detach().numpy(),
        mean_std.detach().numpy(),
        size,
        threads=torch.get_num_threads(),
    )
    return torch.from_numpy(views)


@psc_crop.register_fake
def _(image: Tensor, boxes: Tensor, mean_std: Tensor, size: int) -> Tensor:
    return image.new_empty((boxes.shape[0], 3, size, size), dtype=torch.float32)


@psc_crop.register_kernel("cuda")
def _(image: Tensor, boxes: Tensor, mean_std: Tensor, size: int) -> Tensor:
    from .cuda import psc_crop_cuda

    views = image.new_empty((boxes.shape[0], 3, size, size), dtype=torch.float32)
    with torch.cuda.device(image.device):
        psc_crop_cuda(
            image.detach(),
            boxes.detach().contiguous(),
            mean_std.detach().contiguous(),
            size,
            out=views,
            stream=torch.cuda.current_stream(image.device),
        )
    return views
