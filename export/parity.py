"""Parity: what PyTorch did on a few samples, captured at every boundary.

`capture` makes the reference that travels in the bundle; `geomag_edge.runtime.proof.verify`
compares an engine with it, here at export and later on any machine.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import torch

from geomag_edge.errors import ParityError
from geomag_edge.manifest import Manifest
from geomag_edge.model.geomag import GeoMagForConditionalGeneration
from geomag_edge.model.inference import answer
from geomag_edge.model.processor import GeoMagProcessor
from geomag_edge.prompts import SEG_TOKEN
from geomag_edge.runtime.chain.chain import Chain
from geomag_edge.runtime.chain.scene_session import SceneSession
from geomag_edge.runtime.engines.reference import Call, Sample
from geomag_edge.runtime.engines.torch_engine import TorchEngine
from geomag_edge.runtime.images.scene import Scene
from geomag_edge.runtime.proof.recording import LLM_CALLS, RecordingEngine
from geomag_edge.runtime.proof.verify import first_difference
from geomag_edge.scenes import render_scene

NEW_TOKENS = 12


def parity_samples(view_px: int) -> Iterator[Sample]:
    """One sample a level. The pixel one is large enough for PSC to look twice, and its answer
    starts with [SEG] so that the mask head is exercised whatever the model has learnt."""
    asked = (
        ("image", "how many ships are in the image?", "", 2),
        ("region", "find the box of the large building", "", 3),
        ("pixel", "segment the ships near the pier", SEG_TOKEN, 5),
    )
    for seed, (level, prompt, prefix, scale) in enumerate(asked):
        image = render_scene(seed + 1, size_px=max(512, scale * view_px)).image
        image = np.ascontiguousarray(image[: image.shape[0] * 4 // 5])  # not square, as scenes are
        yield Sample(image, prompt, level, prefix, NEW_TOKENS)


def capture(
    model: GeoMagForConditionalGeneration,
    manifest: Manifest,
    processor: GeoMagProcessor,
    progress: Callable[[str], None],
) -> list[Sample]:
    """Runs the samples through the chain on PyTorch and keeps every boundary.

    The independent reference inference must give the same tokens, so a mistake in the chain
    itself is found here and not copied to every engine.

    Raises:
        ParityError: the chain on PyTorch and the reference inference differ.
    """
    samples = []
    for sample in parity_samples(manifest.view.view_px):
        progress(f"reference at budget {sample.budget}")
        recording = RecordingEngine(TorchEngine(model), LLM_CALLS)
        chain = Chain(recording, manifest, processor.coder)
        with SceneSession(chain, Scene.open(sample.image)) as session:
            result = session.ask(
                sample.prompt, sample.budget, sample.max_new_tokens, sample.answer_prefix
            )
        expected = answer(
            model,
            processor,
            sample.image,
            sample.prompt,
            manifest.budgets[sample.budget],
            sample.max_new_tokens,
            sample.answer_prefix,
        )
        where = first_difference(expected.token_ids, result.token_ids)
        if where is not None:
            raise ParityError(
                f"the chain on PyTorch and the reference inference differ at token {where} of "
                f"{sample.prompt!r}: this is a fault of geomag-edge, please report it"
            )
        sample.calls = [
            *recording.calls,
            _psc_call(model, processor, recording.calls, sample),
        ]
        sample.token_ids = result.token_ids
        sample.granularity = result.granularity
        sample.boxes = result.boxes
        sample.crop_boxes = result.crop_boxes
        sample.masks = _stacked(result.masks, sample.image.shape[:2])
        samples.append(sample)
    return samples


def _psc_call(
    model: GeoMagForConditionalGeneration,
    processor: GeoMagProcessor,
    calls: list[Call],
    sample: Sample,
) -> Call:
    """The same look as the sample's first `psc_select` call, as `psc.onnx` does it: with crops."""
    first = next(call for call in calls if call.graph == "psc_select")
    inputs = {"image": sample.image} | {k: first.inputs[k] for k in ("embeds", "prompt_ids")}
    crops = processor.views(sample.image, first.outputs["boxes"]).numpy()
    return Call("psc", inputs, first.outputs | {"crops": crops})


def _stacked(masks: list, shape: tuple[int, ...]) -> np.ndarray:
    arrays = [np.asarray(m) for m in masks]
    return np.stack(arrays) if arrays else np.zeros((0, *shape), bool)


def release(module: torch.nn.Module) -> None:
    """Frees a module's weights once its graph is on disk."""
    for parameter in module.parameters():
        parameter.data = torch.empty(0, dtype=parameter.dtype)  # `model.dtype` stays true
