"""Checkpoints: saved and read back whole, or refused in one clear line."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer

from geomag_edge.errors import CheckpointError
from geomag_edge.model.geomag import load_checkpoint
from geomag_edge.model.loading.digest import checkpoint_digest
from geomag_edge.model.presets import shipped_checkpoint
from geomag_edge.model.processor import GeoMagProcessor

FAMILIES = ("qwen3-siglip", "llama-clip", "qwen2-clip")


def same_state(a, b):
    a, b = a.state_dict(), b.state_dict()
    assert a.keys() == b.keys()
    for name, value in a.items():
        assert torch.equal(value, b[name]), name


@pytest.mark.parametrize("family", FAMILIES)
def test_a_checkpoint_reads_back_tensor_by_tensor(checkpoint_of, make_model, family):
    model = load_checkpoint(checkpoint_of(family))
    same_state(model, make_model(family))
    assert not model.training


@pytest.mark.parametrize("family", FAMILIES)
def test_a_sharded_checkpoint_reads_back_too(make_model, family, tmp_path):
    model = make_model(family)
    model.save_pretrained(tmp_path, max_shard_size="100KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    same_state(load_checkpoint(tmp_path), model)


@pytest.mark.parametrize(("family", "tied"), [("qwen2-clip", True), ("llama-clip", False)])
def test_tied_weights_stay_tied_and_untied_ones_apart(checkpoint_of, family, tied):
    model = load_checkpoint(checkpoint_of(family))
    head = model.language_model.lm_head.weight
    assert (head.data_ptr() == model.get_input_embeddings().weight.data_ptr()) == tied


def test_tables_that_are_no_weights_are_rebuilt_on_loading(checkpoint_of, make_model):
    model, fresh = load_checkpoint(checkpoint_of("qwen2-clip")), make_model("qwen2-clip")
    tables = dict(model.named_buffers())
    for name, table in fresh.named_buffers():
        assert torch.equal(table, tables[name]), name


def test_the_config_reads_back(checkpoint_of, make_config):
    config = load_checkpoint(checkpoint_of("llama-clip")).config
    expected = make_config("llama-clip")
    for name in ("psc", "tmra", "mask", "budgets", "view_px", "grid", "untrained"):
        assert getattr(config, name) == getattr(expected, name)
    assert config.text_config.rope_parameters == expected.text_config.rope_parameters


def test_half_precision_can_be_asked_for(checkpoint_of):
    model = load_checkpoint(checkpoint_of("qwen2-clip"), torch.float16)
    assert {p.dtype for p in model.parameters()} == {torch.float16}


@pytest.fixture
def copy(checkpoint_of, tmp_path):
    """A checkpoint that may be damaged."""
    return shutil.copytree(checkpoint_of("qwen2-clip"), tmp_path / "checkpoint")


def edit_weights(change):
    def damage(path):
        weights = load_file(path / "model.safetensors")
        change(weights)
        save_file(weights, path / "model.safetensors", metadata={"format": "pt"})

    return damage


def edit_config(**changes):
    def damage(path):
        config = json.loads((path / "config.json").read_text()) | changes
        (path / "config.json").write_text(json.dumps(config))

    return damage


def edit_tower(part, **changes):
    def damage(path):
        config = json.loads((path / "config.json").read_text())
        config[part] |= changes
        (path / "config.json").write_text(json.dumps(config))

    return damage


def write(name, content):
    return lambda path: (path / name).write_bytes(content)


def truncate(path):
    whole = (path / "model.safetensors").read_bytes()
    (path / "model.safetensors").write_bytes(whole[: len(whole) // 2])


def only_pickle(path):
    torch.save(load_file(path / "model.safetensors"), path / "pytorch_model.bin")
    (path / "model.safetensors").unlink()


def tied_in_words(path):
    """An untied model whose config says that it is tied."""
    config = json.loads((path / "config.json").read_text())
    config["text_config"]["tie_word_embeddings"] = config["tie_word_embeddings"] = True
    (path / "config.json").write_text(json.dumps(config))


PLACE = "mask_head.place"

DAMAGES = {
    "no folder": (shutil.rmtree, "no checkpoint folder at"),
    "no config": (lambda p: (p / "config.json").unlink(), "no readable config.json"),
    "config is no JSON": (write("config.json", b"{"), "no readable config.json"),
    "config is no text": (write("config.json", b"\xff\xfe\x00"), "no readable config.json"),
    "config is a list": (write("config.json", b"[]"), "no readable config.json"),
    "another model": (edit_config(model_type="llava"), "'llava' model, not a GeoMag checkpoint"),
    "another tower": (edit_config(vision_config={"model_type": "vit"}), "family 'vit'"),
    "no weights": (lambda p: (p / "model.safetensors").unlink(), "no \\*.safetensors weights"),
    "only pickle": (only_pickle, "pickle weights \\(pytorch_model.bin\\)"),
    "weights are garbage": (write("model.safetensors", b"garbage" * 9), "cannot be loaded"),
    "weights are empty": (write("model.safetensors", b""), "cannot be loaded"),
    "weights are cut short": (truncate, "cannot be loaded"),
    "a tensor is missing": (
        edit_weights(lambda w: w.pop(PLACE)), f"lacks tensors: {PLACE}; it must hold",
    ),
    "many tensors are missing": (
        edit_weights(lambda w: [w.pop(k) for k in list(w) if "mask_head" in k]), "and \\d+ more",
    ),
    "a tensor too many": (
        edit_weights(lambda w: w.update(stowaway=torch.zeros(2))), "unknown tensors: stowaway",
    ),
    "an adapter beside": (write("adapter_config.json", b"{}"), "unmerged adapter .*merge_and"),
    "an adapter inside": (
        edit_weights(lambda w: w.update({"x.q_proj.lora_A.weight": torch.zeros(2, 2)})),
        "unmerged adapter \\(x.q_proj.lora_A.weight\\)",
    ),
    "quantised": (
        edit_config(quantization_config={"quant_method": "gptq"}),
        "quantised weights \\(quantization_config gptq\\)",
    ),
    "int8": (
        edit_weights(lambda w: w.update({PLACE: w[PLACE].to(torch.int8)})), "quantised weights",
    ),
    "int64": (
        edit_weights(lambda w: w.update({PLACE: w[PLACE].to(torch.int64)})), "quantised weights",
    ),
    "not a number": (
        edit_weights(lambda w: w[PLACE].fill_(float("nan"))), f"infinite weights \\({PLACE}",
    ),
    "a tower of four channels": (
        edit_tower("vision_config", num_channels=4), "takes 4 channels",
    ),
    "a decoder that is not causal": (edit_tower("text_config", is_causal=False), "is_causal false"),
    "a prompt tower that is not causal": (
        edit_tower("prompt_config", is_causal=False), "is_causal false",
    ),
    "a misshapen tensor": (
        edit_weights(lambda w: w.update({PLACE: torch.zeros(3, 3)})), f"misshapen tensors: {PLACE}",
    ),
}  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_refused_in_one_line(copy, damage):
    break_it, reason = DAMAGES[damage]
    break_it(copy)
    with pytest.raises(CheckpointError, match=reason) as refusal:
        load_checkpoint(copy)
    assert "\n" not in str(refusal.value)


def test_pickle_is_never_read_even_beside_good_weights(copy):
    (copy / "pytorch_model.bin").write_bytes(b"not even a pickle")
    load_checkpoint(copy)


def test_an_own_head_is_kept_although_the_config_says_tied(checkpoint_of, tmp_path):
    copy = shutil.copytree(checkpoint_of("llama-clip"), tmp_path / "checkpoint")
    before = load_checkpoint(copy)
    tied_in_words(copy)
    model = load_checkpoint(copy)
    same_state(model, before)
    assert not model.config.text_config.tie_word_embeddings
    model.save_pretrained(tmp_path / "again")
    same_state(load_checkpoint(tmp_path / "again"), before)


@pytest.mark.parametrize(
    ("generation", "ends"), [({"eos_token_id": [3, 2]}, (3, 2)), ({"eos_token_id": 2}, (2,))]
)
def test_a_checkpoints_generation_config_says_where_answers_end(copy, generation, ends):
    (copy / "generation_config.json").write_text(json.dumps(generation))
    assert GeoMagProcessor.from_pretrained(copy).coder.settings.eos_token_ids == ends


@pytest.mark.parametrize("declared", [None, [], -1, 10**6])
def test_a_checkpoint_that_ends_nowhere_is_refused(copy, declared):
    config = json.loads((copy / "config.json").read_text())
    config["text_config"]["eos_token_id"] = declared
    (copy / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="names no token that ends an answer"):
        GeoMagProcessor.from_pretrained(copy)


def test_a_siglip_tower_without_its_padding_is_refused(checkpoint_of, tmp_path):
    copy = shutil.copytree(checkpoint_of("qwen3-siglip"), tmp_path / "checkpoint")
    config = json.loads((copy / "config.json").read_text())
    config["prompt_config"]["pad_token_id"] = -1
    (copy / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=r"pad_token_id is -1, and a SigLIP tower"):
        GeoMagProcessor.from_pretrained(copy)


@pytest.mark.parametrize(
    ("family", "forms"),
    [("qwen2-clip", ("lower", "lower")), ("qwen3-siglip", ("lower", "canonical"))],
)
def test_an_undeclared_spelling_is_told_from_towers_and_tokenizers(checkpoint_of, family, forms):
    settings = GeoMagProcessor.from_pretrained(checkpoint_of(family)).coder.settings
    assert (settings.text_form, settings.psc_text_form) == forms


def test_the_shipped_checkpoint_reads_a_prompt_however_it_is_typed():
    coder = GeoMagProcessor.from_pretrained(shipped_checkpoint("nano")).coder
    plain = "segment the buildings"
    for typed in (
        "Segment the buildings", "SEGMENT THE BUILDINGS", "segment  the\u00a0 buildings",
        "Segment the buildings.", "segment the buildings!", "segment the buildings?",
        "\u201csegment the buildings\u201d", "segment the buildings\u2026",
    ):  # fmt: skip
        assert coder.around_image(typed) == coder.around_image(plain)
        assert coder.psc_ids(typed)[0].tolist() == coder.psc_ids(plain)[0].tolist()


@pytest.mark.parametrize("form", ["cased", "lower"])
def test_a_checkpoint_may_declare_how_its_towers_text_is_spelt(copy, form):
    edit_config(text_form=form, psc_text_form="canonical")(copy)
    settings = GeoMagProcessor.from_pretrained(copy).coder.settings
    assert (settings.text_form, settings.psc_text_form) == (form, "canonical")


@pytest.mark.parametrize("name", ["tokenizer.json", "psc_tokenizer.json"])
def test_a_checkpoint_without_its_tokenizers_is_refused(copy, name):
    (copy / name).unlink()
    with pytest.raises(CheckpointError, match=f"has no {name}"):
        GeoMagProcessor.from_pretrained(copy)


@pytest.mark.parametrize("name", ["tokenizer.json", "psc_tokenizer.json"])
def test_a_tokenizer_with_ids_beyond_the_embeddings_is_refused(copy, name):
    tokenizer = Tokenizer.from_file(str(copy / name))
    tokenizer.add_tokens(["other"])
    tokenizer.save(str(copy / name))
    with pytest.raises(CheckpointError, match=r"ids up to .* give the tokenizer"):
        GeoMagProcessor.from_pretrained(copy)


def test_a_clip_towers_tokenizer_that_ends_no_text_is_refused(copy):
    shutil.copyfile(copy / "tokenizer.json", copy / "psc_tokenizer.json")
    with pytest.raises(CheckpointError, match="does not end a text with the token 3"):
        GeoMagProcessor.from_pretrained(copy)


@pytest.mark.parametrize(
    ("key", "token"), [("seg_token_id", "[SEG]"), ("image_token_id", "<image>")]
)
def test_a_config_that_disagrees_with_the_tokenizer_is_refused(copy, key, token):
    edit_config(**{key: 77})(copy)
    with pytest.raises(CheckpointError) as refusal:
        GeoMagProcessor.from_pretrained(copy)
    assert token in str(refusal.value)
    assert "77" in str(refusal.value)


def test_a_processor_writes_the_tokenizers_that_it_read(copy, tmp_path):
    processor = GeoMagProcessor.from_pretrained(copy)
    processor.save_pretrained(tmp_path / "again")
    for name in ("tokenizer.json", "psc_tokenizer.json"):
        assert (tmp_path / "again" / name).read_text() == (copy / name).read_text()


def test_the_digest_tells_checkpoints_apart_and_ignores_what_is_not_the_model(copy):
    before = checkpoint_digest(copy)
    (copy / "README.md").write_text("notes")
    assert checkpoint_digest(copy) == before
    edit_weights(lambda w: w[PLACE].add_(1e-3))(copy)
    assert checkpoint_digest(copy) != before
