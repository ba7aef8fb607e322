"""A checkpoint from a stranger: any value of its config.json may be any other."""

import json
import os
import shutil
import tracemalloc

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from geomag_edge.errors import CheckpointError, GeoMagError
from geomag_edge.model.geomag import load_checkpoint
from geomag_edge.model.loading import weights
from geomag_edge.model.loading.config_fields import part_config
from geomag_edge.model.loading.digest import checkpoint_digest
from geomag_edge.model.processor import GeoMagProcessor

ODD = [
    None, True, False, 0, 1, -1, 3, 1.5, 10**6, 2**31, 2**62, -(2**31), 1e300, 1e-300, "", "x",
    "x" * 5000, "1", [], {}, [1], [[]], ["x"], {"x": 1}, [None] * 3, {"model_type": "qwen2"},
]  # fmt: skip
UNASKED = [
    "auto_map", "attn_implementation", "transformers_weights", "per_layer_config",
    "to_dict", "_attn_implementation", "quantization", "rope_scaling", "id2label",
    "dtype", "torch_dtype", "base_model_tp_plan", "pruned_heads", "sub_configs",
    "forward", "__class__", "head_dim", "get_text_config",
    "layer_types", "problem_type", "name_or_path", "output_attentions",
]  # fmt: skip
PARTS = ["", "text_config", "vision_config", "prompt_config"]
values = st.sampled_from(ODD) | st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats() | st.text(),
    lambda x: st.lists(x, max_size=4) | st.dictionaries(st.text(max_size=9), x, max_size=4),
    max_leaves=6,
)


@pytest.fixture(scope="module")
def copy(checkpoint_of, tmp_path_factory):
    return shutil.copytree(checkpoint_of("qwen2-clip"), tmp_path_factory.mktemp("c") / "checkpoint")


@pytest.fixture(scope="module")
def sound(copy):
    return json.loads((copy / "config.json").read_text())


def places(value, path=()):
    """The path of every value in a JSON document."""
    inner = value.items() if isinstance(value, dict) else enumerate(value)
    for key, item in inner:
        yield (*path, key)
        if isinstance(item, dict | list):
            yield from places(item, (*path, key))


def changed(document, path, value):
    made = json.loads(json.dumps(document))
    inner = made
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    return made


def opened(folder, config):
    """Loads a checkpoint with this config, or says in one short line why not."""
    (folder / "config.json").write_text(json.dumps(config))
    refusal = None
    try:
        load_checkpoint(folder)
        GeoMagProcessor.from_pretrained(folder)
    except GeoMagError as e:
        refusal = e
    said = str(refusal or "").replace(str(folder), "checkpoint")
    assert len(said) < 300
    assert refusal is None or refusal.exit_code == 2
    return said


@settings(max_examples=15, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_any_value_of_a_config_may_be_any_other(copy, sound, data):
    path = data.draw(st.sampled_from(sorted(places(sound), key=str)))
    opened(copy, changed(sound, path, data.draw(values)))


@settings(max_examples=10, suppress_health_check=list(HealthCheck))
@given(st.sampled_from(UNASKED), st.sampled_from(PARTS), values)
def test_a_field_that_nobody_asked_for_does_nothing_or_is_refused(copy, sound, name, part, value):
    opened(copy, changed(sound, (part, name) if part else (name,), value))


CASES = {
    "views of a million pixels": (("vision_config", "image_size"), 10**6),
    "views of many patches": (("vision_config", "patch_size"), 2),
    "layers without end": (("vision_config", "num_hidden_layers"), 2**31),
    "hundreds of layers": (("text_config", "num_hidden_layers"), 512),
    "a wide layer": (("text_config", "intermediate_size"), 2**20),
    "a long context of the prompt": (("prompt_config", "max_position_embeddings"), 10**7),
    "words without end": (("text_config", "vocab_size"), 10**7),
    "negative heads": (("mask", "heads"), -1),
    "no heads": (("mask", "heads"), 0),
    "heads that do not divide": (("mask", "heads"), 5),
    "odd heads": (("text_config", "num_key_value_heads"), 3),
    "windows without end": (("psc", "windows"), [1] * 1000),
    "levels without end": (("psc", "levels"), 10**9),
    "crops without end": (("tmra", "budgets", "pixel", "crops"), 10**9),
    "more crops than there are": (("tmra", "budgets", "pixel", "crops"), 5),
    "a budget of text": (("tmra", "budgets", "pixel"), "all"),
    "a grid of half a token": (("tmra", "budgets", "image", "global_grid"), 1.5),
    "an overlap of text": (("psc", "overlap"), "much"),
    "a number that is none": (("psc", "overlap"), float("nan")),
    "a record for a template": (("prompt_template",), {}),
    "untrained is a number": (("untrained",), 1),
    "a mean of words": (("image_mean",), ["a", "b", "c"]),
    "a tower that is text": (("vision_config",), "clip_vision_model"),
    "rotary positions of nothing": (("text_config", "rope_parameters", "rope_theta"), 0),
    "an unknown activation": (("text_config", "hidden_act"), "boom"),
}


@pytest.mark.parametrize("case", CASES)
def test_what_no_model_can_be_is_refused_before_it_is_built(copy, sound, case):
    path, value = CASES[case]
    tracemalloc.start()
    said = opened(copy, changed(sound, path, value))
    assert tracemalloc.get_traced_memory()[1] < 100e6
    tracemalloc.stop()
    assert said


def test_a_million_brackets_are_no_config(copy):
    (copy / "config.json").write_bytes(b"[" * 1_000_000)
    with pytest.raises(CheckpointError, match="nested"):
        load_checkpoint(copy)


@pytest.mark.parametrize("name", ["config.json", "generation_config.json"])
def test_nothing_waits_for_a_pipe(checkpoint_of, tmp_path, name):
    folder = shutil.copytree(checkpoint_of("qwen2-clip"), tmp_path / "checkpoint")
    (folder / name).unlink(missing_ok=True)
    os.mkfifo(folder / name)
    for load in (load_checkpoint, checkpoint_digest)[: 1 + (name == "config.json")]:
        with pytest.raises(CheckpointError, match="a pipe"):
            load(folder)


def weights_in(folder, **changes):
    tensors = load_file(folder / "model.safetensors")
    save_file(tensors | changes, folder / "model.safetensors")


@pytest.mark.parametrize(
    "place", ["../evil.safetensors", "/etc/passwd", "a/b.safetensors", ".hidden.safetensors", "",
              "evil.bin", 5, None, ["x"], {}, "missing.safetensors", "x" * 300 + ".safetensors"],
)  # fmt: skip
def test_an_index_names_files_of_its_own_folder_alone(checkpoint_of, tmp_path, place):
    folder = shutil.copytree(checkpoint_of("qwen2-clip"), tmp_path / "checkpoint")
    (folder / "model.safetensors").rename(tmp_path / "evil.safetensors")
    index = {"metadata": {}, "weight_map": {"mask_head.place": place}}
    (folder / weights.INDEX).write_text(json.dumps(index))
    with pytest.raises(
        CheckpointError, match=r"no safetensors file of this folder|lacks the shard"
    ):
        load_checkpoint(folder)


@pytest.mark.parametrize("places", [None, [], {}, "x", 3])
def test_an_index_that_names_nothing_is_refused(checkpoint_of, tmp_path, places):
    folder = shutil.copytree(checkpoint_of("qwen2-clip"), tmp_path / "checkpoint")
    (folder / "model.safetensors").unlink()
    (folder / weights.INDEX).write_text(json.dumps({"weight_map": places}))
    with pytest.raises(CheckpointError, match="names no shards"):
        load_checkpoint(folder)


HEADERS = {
    "a header without end": (2**62).to_bytes(8, "little") + b"{}",
    "a large header": (100_000_000).to_bytes(8, "little") + b" " * 1000,
    "a tensor without end": json.dumps(
        {"x": {"dtype": "F32", "shape": [2**40, 2**40], "data_offsets": [0, 8]}}
    ).encode(),
    "an empty file": b"",
}


@pytest.mark.parametrize("case", HEADERS)
def test_a_header_is_looked_at_before_it_is_parsed(checkpoint_of, tmp_path, case):
    folder = shutil.copytree(checkpoint_of("qwen2-clip"), tmp_path / "checkpoint")
    text = HEADERS[case]
    if text.startswith(b"{"):
        text = len(text).to_bytes(8, "little") + text + bytes(8)
    (folder / "model.safetensors").write_bytes(text)
    with pytest.raises(CheckpointError, match="is damaged") as e:
        load_checkpoint(folder)
    assert len(str(e.value).replace(str(folder), "")) < 250


def test_weights_are_those_that_were_looked_at(checkpoint_of, tmp_path):
    """A config may name another file for `transformers` to load."""
    folder = shutil.copytree(checkpoint_of("qwen2-clip"), tmp_path / "checkpoint")
    before = load_checkpoint(folder).mask_head.place
    shutil.copyfile(folder / "model.safetensors", folder / "evil.safetensors")
    tensors = load_file(folder / "evil.safetensors")
    tensors["mask_head.place"] += 1
    save_file(tensors, folder / "evil.safetensors")
    config = json.loads((folder / "config.json").read_text())
    config["transformers_weights"] = "evil.safetensors"
    (folder / "config.json").write_text(json.dumps(config))
    assert torch.equal(load_checkpoint(folder).mask_head.place, before)


def test_no_kernel_is_fetched_for_a_config_that_names_one(copy, sound):
    for part in ("text_config", "vision_config"):
        config = changed(sound, (part, "attn_implementation"), "strangers/kernel")
        assert not opened(copy, config)


def test_the_halves_of_a_first_clip_are_read_with_their_own_checks(tmp_path):
    half = {"num_hidden_layers": 2**31}
    for data in ({"vision_config": half}, {"text_config_dict": half}, {"vision_config_dict": [1]}):
        with pytest.raises(CheckpointError, match="config"):
            part_config(tmp_path, {"model_type": "clip", **data})
    made = part_config(tmp_path, {"model_type": "clip", "vision_config_dict": {"patch_size": 14}})
    assert made.vision_config.patch_size == 14
