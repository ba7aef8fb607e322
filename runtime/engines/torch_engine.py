"""PyTorch as an engine: `torch`, the reference. The only file of the runtime that needs it.

Needs the `export` extra and the checkpoint that the bundle was exported from.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from geomag_edge.cores import threads_of
from geomag_edge.errors import CheckpointError, EngineError, MissingExtraError
from geomag_edge.graphs import (
    EMBED,
    ENCODER,
    MASK_HEAD,
    PROJECTOR,
    PSC_SELECT,
    past_names,
    present_names,
)
from geomag_edge.manifest import Bundle
from geomag_edge.runtime.engines.sharing import is_fork

if TYPE_CHECKING:
    from geomag_edge.model.geomag import GeoMagForConditionalGeneration


class TorchEngine:
    """Runs the modules that the graphs were exported from."""

    name = "torch"

    precision = "fp32"
    takes_several = True

    def __init__(self, model: GeoMagForConditionalGeneration):
        self.model = model

    @classmethod
    def open(
        cls,
        bundle: Bundle,
        precision: str,
        threads: int | None,
        checkpoint: str | Path | None,
    ) -> TorchEngine:
        """Loads the checkpoint that a bundle was exported from.

        Raises:
            EngineError: another precision than fp32, or several threads in a fork.
            MissingExtraError: no PyTorch.
            CheckpointError: the checkpoint is not there, or is another one.
        """
        if precision != "fp32":
            raise EngineError(f"the torch engine is the fp32 reference, it has no {precision}")
        try:
            import torch

            from geomag_edge.model.geomag import load_checkpoint
        except ImportError as e:
            raise MissingExtraError(
                'the torch engine needs PyTorch: pip install "geomag-edge[export]"'
            ) from e
        threads = threads_of(threads)
        if is_fork() and threads != 1:  # OpenMP would wait for threads of the parent
            raise EngineError(
                "the torch engine runs in a fork with one thread only: give threads=1, or start "
                "this process by multiprocessing's spawn"
            )
        if threads is not None:
            torch.set_num_threads(threads)
        return cls(load_checkpoint(_find_checkpoint(bundle, checkpoint)))

    def session(self, graph: str) -> TorchSession:
        """Wraps the part of the model that is this graph."""
        return TorchSession(self.model, graph)

    def close(self) -> None:
        """Drops the model."""
        del self.model


class TorchSession:
    """One graph's module behind named arrays."""

    provider = "PyTorch CPU"

    def __init__(self, model: GeoMagForConditionalGeneration, graph: str):
        self._call = graph_function(model, graph)

    def run(self, feeds: Mapping[str, Any], keep: frozenset[str] = frozenset()) -> dict[str, Any]:
        """See `Session.run`; kept values are tensors."""
        import torch

        tensors = {
            k: torch.from_numpy(np.ascontiguousarray(v)) if isinstance(v, np.ndarray) else v
            for k, v in feeds.items()
        }
        with torch.inference_mode():
            outputs = self._call(tensors)
        return {k: v if k in keep else v.numpy() for k, v in outputs.items()}

    def close(self) -> None:
        """The engine owns the model."""


Call = Callable[[dict[str, Any]], dict[str, Any]]


def graph_function(model: GeoMagForConditionalGeneration, graph: str) -> Call:
    """Named tensors -> named tensors, by the graph's contract."""
    if graph == "psc":
        return _psc_function(model)
    if graph == "llm":
        return _llm_function(model)
    modules = {
        ENCODER.name: (ENCODER, model.encoder),
        PSC_SELECT.name: (PSC_SELECT, model.psc),
        PROJECTOR.name: (PROJECTOR, model.projector),
        EMBED.name: (EMBED, model.get_input_embeddings()),
        MASK_HEAD.name: (MASK_HEAD, model.mask_head),
    }
    if graph not in modules:
        raise EngineError(f"the torch engine has no graph {graph!r}")
    spec, module = modules[graph]

    def call(feeds: dict[str, Any]) -> dict[str, Any]:
        outputs = module(*(feeds[name] for name in spec.input_names))
        if len(spec.outputs) == 1:
            outputs = (outputs,)
        return dict(zip(spec.output_names, outputs, strict=True))

    return call


def _psc_function(model: GeoMagForConditionalGeneration) -> Call:
    import torch

    from geomag_edge.cpp_ext import torch_op  # noqa: F401 - registers torch.ops.geomag.psc_crop
    from geomag_edge.model.psc import view_box_of

    config, select = model.config, graph_function(model, "psc_select")
    mean_std = torch.tensor([config.image_mean, config.image_std])

    def look(f: dict[str, Any]) -> dict[str, Any]:
        shape = torch.tensor(f["image"].shape)
        found = select({**f, "image_shape": shape, "view_box": view_box_of(shape)})
        crops = torch.ops.geomag.psc_crop(f["image"], found["boxes"], mean_std, config.view_px)
        return found | {"crops": crops}

    return look


def _llm_function(model: GeoMagForConditionalGeneration) -> Call:
    decoder = model.decoder()
    past, present = past_names(decoder.layers), present_names(decoder.layers)

    def step(f: dict[str, Any]) -> dict[str, Any]:
        logits, hidden, cache = decoder(
            f["inputs_embeds"], f["attention_mask"], f["position_ids"], [f[k] for k in past]
        )
        return {"logits": logits, "hidden_states": hidden} | dict(zip(present, cache, strict=True))

    return step


def _find_checkpoint(bundle: Bundle, given: str | Path | None) -> Path:
    """The checkpoint folder, and a check that it is the one that was exported."""
    from geomag_edge.model.loading.digest import checkpoint_digest

    recorded = bundle.manifest.checkpoint.get("path")
    if given is not None:
        path = Path(given)
    elif recorded:
        path = Path(os.path.normpath(bundle.root.resolve() / recorded))
    else:
        raise CheckpointError("the torch engine needs the checkpoint: give --checkpoint DIR")
    if not path.is_dir():
        raise CheckpointError(
            f"the torch engine needs the checkpoint of this bundle, which is not at {path}: "
            "give --checkpoint DIR"
        )
    if checkpoint_digest(path) != bundle.manifest.checkpoint.get("sha256"):
        raise CheckpointError(f"{path} is not the checkpoint that this bundle was exported from")
    return path
