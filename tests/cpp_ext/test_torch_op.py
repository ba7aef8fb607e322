"""The torch operator: the kernel's views, traceable, and honest about its inputs."""

import numpy as np
import pytest

from geomag_edge.cpp_ext import psc_crop
from geomag_edge.errors import BoxError, ImageError

torch = pytest.importorskip("torch")
import geomag_edge.cpp_ext.torch_op  # noqa: E402, F401  registers the operator

operator = torch.ops.geomag.psc_crop


@pytest.fixture
def tensors(scene, telling_boxes, mean_std):
    return tuple(torch.from_numpy(array) for array in (scene, telling_boxes, mean_std))


def test_the_operator_gives_the_kernels_views(tensors, scene, telling_boxes, mean_std):
    views = operator(*tensors, 40)
    assert np.array_equal(views.numpy(), psc_crop(scene, telling_boxes, mean_std, 40))


def test_opcheck_passes(tensors):
    image, boxes, mean_std = tensors
    torch.library.opcheck(operator.default, (image, boxes, mean_std, 24))
    torch.library.opcheck(operator.default, (image[::2].flip(1), boxes[:0], mean_std, 24))


def test_the_shape_is_known_without_running(tensors):
    fake = (tensor.to("meta") for tensor in tensors)
    views = operator(*fake, 24)
    assert views.shape == (len(tensors[1]), 3, 24, 24)
    assert views.dtype == torch.float32


def test_channels_first_tensors_are_read_in_place(tensors):
    image, boxes, mean_std = tensors
    planar = image.permute(2, 0, 1).contiguous().permute(1, 2, 0)
    assert torch.allclose(
        operator(planar, boxes, mean_std, 30), operator(image, boxes, mean_std, 30), atol=1e-6
    )


def test_bad_tensors_raise_the_same_errors(tensors):
    image, boxes, mean_std = tensors
    with pytest.raises(ImageError, match="expected uint8"):
        operator(image.float(), boxes, mean_std, 8)
    with pytest.raises(BoxError, match="not finite"):
        operator(image, boxes * float("nan"), mean_std, 8)
