"""Tiny GeoMag checkpoints of every supported family, and bundles exported from them.

A tiny model has 2 layers everywhere, views of 64 px and 4 x 4 patches, so it exports in seconds;
weights are random by seed, drawn wide enough that greedy answers vary.
"""

import dataclasses
import fcntl
import json
import os
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import settings
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

SPECIAL = ["[SEG]", "<image>", "<s>", "</s>"]
# A machine that does something else meanwhile is no fault of an example.
settings.register_profile("any machine", deadline=None)
settings.load_profile("any machine")

FAMILIES = ("qwen3-siglip", "llama-clip", "qwen2-clip")
MAIN_FAMILY = "qwen2-clip"


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory):
    """What engine auto measures here is neither left in the user's cache nor read from it."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("cache")
        patch.setenv("XDG_CACHE_HOME", str(folder))
        yield folder


def train_tokenizers():
    """(for the LLM, for PSC): byte-level, so that any text can be read; both end with `</s>`."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    lines = ["segment the ships near the pier", "how many planes are there?", "USER: ASSISTANT:"]
    tokenizer.train_from_iterator(lines * 20, trainer)
    psc = Tokenizer.from_str(tokenizer.to_str())
    psc.post_processor = processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", psc.token_to_id("</s>"))]
    )
    return tokenizer, psc


@pytest.fixture(scope="session")
def tokenizers():
    """(for the LLM, for PSC), see `train_tokenizers`."""
    return train_tokenizers()


@pytest.fixture(scope="session")
def vocab_size(tokenizers):
    return tokenizers[0].get_vocab_size()


def tiny_text_config(family, vocab_size, **changes):
    """A 2-layer decoder config: `llama`, `qwen2` or `qwen3`."""
    from transformers import LlamaConfig, Qwen2Config, Qwen3Config

    settings = {
        "vocab_size": vocab_size, "hidden_size": 48, "intermediate_size": 96,
        "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
        "max_position_embeddings": 512, "initializer_range": 0.2, "bos_token_id": 2,
        "eos_token_id": 3, "pad_token_id": 3, "tie_word_embeddings": False,
    }  # fmt: skip
    if family == "qwen3":
        settings["head_dim"] = 16  # not hidden / heads, as in the trained models
    kinds = {"llama": LlamaConfig, "qwen2": Qwen2Config, "qwen3": Qwen3Config}
    return kinds[family](**(settings | changes))


LLAMA3_ROPE = {
    "rope_type": "llama3", "rope_theta": 10000.0, "factor": 8.0, "low_freq_factor": 1.0,
    "high_freq_factor": 4.0, "original_max_position_embeddings": 64,
}  # fmt: skip


def tiny_config(family, vocab_size, **changes):
    """The composite config of a family such as `llama-clip`; `changes` go to `GeoMagConfig`."""
    from transformers import CLIPTextConfig, CLIPVisionConfig, SiglipTextConfig, SiglipVisionConfig

    from geomag_edge.budgets import TokenBudget
    from geomag_edge.model.config import GeoMagConfig

    llm, towers = family.split("-")
    layers = {"num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    picture = {"image_size": 64, "patch_size": 16, **layers}
    words = {"vocab_size": vocab_size, "bos_token_id": 2, "eos_token_id": 3, **layers}
    if towers == "clip":
        vision = CLIPVisionConfig(hidden_size=48, projection_dim=32, **picture)
        prompt = CLIPTextConfig(
            hidden_size=32, projection_dim=32, max_position_embeddings=48, pad_token_id=3, **words
        )
        embed_dim = 32
    else:
        vision = SiglipVisionConfig(hidden_size=48, **picture)
        prompt = SiglipTextConfig(
            hidden_size=32, projection_size=48, max_position_embeddings=24, pad_token_id=1, **words
        )
        embed_dim = 48
    text = {
        "llama": {"rope_parameters": LLAMA3_ROPE, "attention_bias": True},
        "qwen2": {"tie_word_embeddings": True},
        "qwen3": {},
    }[llm]
    budgets = {"image": (3, 0, 0), "region": (3, 2, 2), "pixel": (2, 4, 2)}
    settings = {
        "psc": {
            "embed_dim": embed_dim, "max_crops": 4, "windows": [1, 2, 3], "overlap": 0.3,
            "levels": 2,
        },
        "tmra": {"budgets": {k: TokenBudget(*b).to_json() for k, b in budgets.items()}},
        "mask": {"feature_dim": 32, "depth": 1, "heads": 2},
        "seg_token_id": 0,
        "image_token_id": 1,
        "untrained": ["all"],
    }  # fmt: skip
    return GeoMagConfig(
        vision_config=vision,
        prompt_config=prompt,
        text_config=tiny_text_config(llm, vocab_size, **text),
        **(settings | changes),
    )


@pytest.fixture(scope="session")
def make_text_config(vocab_size):
    """(family, **changes) -> a tiny decoder config."""
    return lambda family, **changes: tiny_text_config(family, vocab_size, **changes)


@pytest.fixture(scope="session")
def make_config(vocab_size):
    """(family, **changes) -> a tiny GeoMag config."""
    return lambda family, **changes: tiny_config(family, vocab_size, **changes)


def tiny_model(config, seed=0):
    """A model of this config with seeded weights, in eval mode."""
    import torch
    from transformers import set_seed

    from geomag_edge.model.geomag import GeoMagForConditionalGeneration

    set_seed(seed)
    with torch.no_grad():
        model = GeoMagForConditionalGeneration(config)
    return model.eval().requires_grad_(False)


@pytest.fixture(scope="session")
def make_model(make_config):
    """(family, seed, **changes) -> a tiny model with seeded weights, in eval mode."""
    return lambda family, seed=0, **changes: tiny_model(make_config(family, **changes), seed)


@pytest.fixture(scope="session")
def checkpoint_of(make_model, tokenizers, tmp_path_factory):
    """(family) -> the folder of a tiny checkpoint, made once; read only."""
    from geomag_edge.model.presets import save_checkpoint

    made = {}

    def checkpoint(family):
        if family not in made:
            made[family] = tmp_path_factory.mktemp("checkpoints") / family
            save_checkpoint(make_model(family), *tokenizers, made[family])
        return made[family]

    return checkpoint


@dataclasses.dataclass(frozen=True)
class Exported:
    """A bundle that must not be written to, where it came from, its parity report and steps."""

    bundle: object
    checkpoint: object
    report: object
    steps: list
    family: str
    opset: int
    dtype: str

    def graph(self, name):
        return self.bundle / "onnx" / self.dtype / f"{name}.onnx"


@pytest.fixture(scope="session")
def made_once(tmp_path_factory):
    """(name, make) -> what `make(folder)` gives, for processes that share TINY_BUNDLES made once.

    An export takes seconds, and the parts of a test run want the same ones.
    """
    root = Path(os.environ.get("TINY_BUNDLES") or tmp_path_factory.mktemp("bundles"))

    def made(name, make):
        said = root / f"{name}.pickle"
        with open(root / f"{name}.lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not said.exists():
                shutil.rmtree(root / name, ignore_errors=True)  # of a run that was stopped
                value = make(root / name)
                said.write_bytes(pickle.dumps(value))
        return pickle.loads(said.read_bytes())

    return made


@pytest.fixture(scope="session")
def exported(checkpoint_of, made_once):
    """(family, opset, dtype) -> `Exported`, made once."""
    from geomag_edge.export.exporter import export_bundle

    opened = {}

    def export(family=MAIN_FAMILY, opset=23, dtype="fp32"):
        key = (family, opset, dtype)
        checkpoint = checkpoint_of(family)

        def make(out):
            steps = []
            report = export_bundle(checkpoint, out, dtype=dtype, opset=opset, progress=steps.append)
            return out, report, steps

        if key not in opened:
            out, report, steps = made_once("-".join(map(str, key)), make)
            opened[key] = Exported(out, checkpoint, report, steps, *key)
        return opened[key]

    return export


@pytest.fixture(scope="session")
def bundle(exported):
    """The folder of a tiny exported bundle; read only."""
    return exported().bundle


@pytest.fixture(scope="session")
def nano(made_once):
    """The folder of the shipped checkpoint's bundle, calibrated on two small scenes; read only."""
    from geomag_edge.calibration.quantization.capture import capture
    from geomag_edge.calibration.quantization.scales import save_scales
    from geomag_edge.calibration.sets.calibrating import open_calibration_set
    from geomag_edge.export.exporter import export_bundle
    from geomag_edge.manifest import Bundle
    from geomag_edge.model.presets import shipped_checkpoint

    def make(root):
        export_bundle(shipped_checkpoint("nano"), root)
        found = capture(Bundle.open(root), open_calibration_set("scenes:1:2:256"), threads=1)
        return save_scales(Bundle.open(root), found.scales, "mse").root

    return made_once("nano", make)


@pytest.fixture(scope="session")
def manifest(bundle):
    """The parsed manifest of `bundle`."""
    from geomag_edge.manifest import Bundle

    return Bundle.open(bundle).manifest


@pytest.fixture
def manifest_json(bundle):
    """A fresh copy of `bundle`'s manifest, to be damaged."""
    return json.loads((bundle / "bundle.json").read_text())


@pytest.fixture(scope="session")
def picture():
    """Blocks and noise, not square, large enough for PSC to look twice: u8[320,400,3]."""
    rng = np.random.default_rng(5)
    blocks = rng.integers(0, 256, (8, 10, 3)).repeat(40, axis=0).repeat(40, axis=1)
    return (blocks * 0.8 + rng.integers(0, 50, blocks.shape)).astype(np.uint8)


@pytest.fixture(scope="session")
def torch_chain(checkpoint_of):
    """(family) -> a chain on PyTorch that records its calls, and what it was made from."""
    from geomag_edge.export.describe import describe
    from geomag_edge.model.geomag import load_checkpoint
    from geomag_edge.model.processor import GeoMagProcessor
    from geomag_edge.runtime.chain.chain import Chain
    from geomag_edge.runtime.engines.torch_engine import TorchEngine
    from geomag_edge.runtime.proof.recording import RecordingEngine

    made = {}

    def chain(family=MAIN_FAMILY):
        if family not in made:
            folder = checkpoint_of(family)
            model, processor = load_checkpoint(folder), GeoMagProcessor.from_pretrained(folder)
            manifest = describe(model, processor.coder.settings, folder, folder.parent / "bundle")
            engine = RecordingEngine(TorchEngine(model))
            made[family] = Chain(engine, manifest, processor.coder), model, processor
        made[family][0].engine.calls.clear()
        return made[family]

    return chain
