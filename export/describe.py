"""A checkpoint's configuration -> the manifest's records, all that the runtime needs of it."""

from __future__ import annotations

import os
from pathlib import Path

from geomag_edge.errors import BundleError, CheckpointError
from geomag_edge.manifest import DecoderShape, Manifest, ViewSettings
from geomag_edge.model.geomag import GeoMagForConditionalGeneration
from geomag_edge.model.loading.digest import checkpoint_digest
from geomag_edge.prompts import PromptSettings
from geomag_edge.version import VERSION
from geomag_edge.views import PscSettings


def describe(
    model: GeoMagForConditionalGeneration, prompt: PromptSettings, checkpoint: Path, out: Path
) -> Manifest:
    """The manifest of a bundle to be, without graphs, files and reports.

    Raises:
        CheckpointError: its configuration says what no manifest may.
    """
    config = model.config
    decoder = model.decoder()
    made = Manifest(
        created_by=f"geomag-edge {VERSION}",
        model_config=_without_places(config.to_dict()),
        view=ViewSettings(
            config.view_px, config.grid, tuple(config.image_mean), tuple(config.image_std)
        ),
        prompt=prompt,
        psc=PscSettings.from_json(config.psc),
        budgets=config.budgets,
        decoder=DecoderShape(
            decoder.layers, decoder.kv_heads, decoder.head_dim, config.text_config.hidden_size
        ),
        graphs={},
        files={},
        checkpoint={
            "sha256": checkpoint_digest(checkpoint),
            "path": os.path.relpath(checkpoint.resolve(), out.resolve()),
        },
        untrained=list(config.untrained),
    )
    try:
        Manifest.from_json(made.to_json())
    except BundleError as e:
        raise CheckpointError(
            f"checkpoint {checkpoint} would make a bundle that is not opened: {e}"
        ) from e
    return made


def _without_places(config: dict) -> dict:
    """A config without the paths of the machine that it was loaded on."""
    return {
        key: _without_places(value) if isinstance(value, dict) else value
        for key, value in config.items()
        if key != "_name_or_path"
    }
