"""`compose` and what trained parts bring along: adapters, heads, ends of answers, damages."""

import json
import shutil

import numpy as np
import onnxruntime
import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, processors
from transformers import (
    AutoModelForCausalLM,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
    SiglipVisionConfig,
    SiglipVisionModel,
)


@pytest.fixture
def copied(parts, tmp_path):
    """(name of a part) -> a folder of it that may be changed."""
    return lambda name: shutil.copytree(parts / name, tmp_path / f"{name}-changed")


@pytest.fixture
def composed(command, parts, tmp_path):
    """(llm, vision, prompt) -> the composed checkpoint, and what --json said."""

    def make(llm, vision="clip", prompt="clip"):
        out = tmp_path / "ck"
        code, text, err = command(
            "compose", "--vision", parts / vision, "--prompt", parts / prompt, "--llm", llm,
            "-o", out, "--json",
        )  # fmt: skip
        assert code == 0, err
        return out, json.loads(text)

    return make


def edit(path, **changes):
    """Changes a JSON file; None removes a key, and a file is made where there is none."""
    data = json.loads(path.read_text()) if path.is_file() else {}
    data = {k: v for k, v in (data | changes).items() if v is not None}
    path.write_text(json.dumps(data))


def edit_weights(folder, change):
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def refused(command, parts, tmp_path, option, folder):
    """The one line with which a changed part is refused."""
    chosen = {"--vision": parts / "clip", "--prompt": parts / "clip", "--llm": parts / "qwen2"}
    argv = [x for pair in (chosen | {option: folder}).items() for x in pair]
    code, _, err = command("compose", *argv, "-o", tmp_path / "ck")
    assert code == 2
    assert len(err.strip().splitlines()) == 1
    assert not (tmp_path / "ck").exists()
    return err


PEFT = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["q_proj"]}
LORA = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"


def adapter_beside(folder):
    edit(folder / "adapter_config.json", **PEFT)
    save_file({LORA: torch.zeros(4, 48)}, folder / "adapter_model.safetensors")


def adapter_alone(folder):
    adapter_beside(folder)
    (folder / "model.safetensors").unlink()
    (folder / "config.json").unlink()


def adapter_inside(folder):
    def wrap(weights):
        name = next(k for k in weights if k.endswith("q_proj.weight"))
        weights[name.replace("q_proj.", "q_proj.base_layer.")] = weights.pop(name)

    edit_weights(folder, wrap)


def lora_inside(folder):
    edit_weights(folder, lambda w: w.update({"x.lora_B.default.weight": torch.zeros(2, 2)}))


@pytest.mark.parametrize("change", [adapter_beside, adapter_alone, adapter_inside, lora_inside])
@pytest.mark.parametrize(
    ("option", "part"), [("--llm", "llama"), ("--vision", "siglip"), ("--prompt", "clip-text")]
)
def test_an_unmerged_adapter_is_refused_whether_or_not_peft_is_there(
    command, parts, copied, tmp_path, change, option, part
):
    folder = copied(part)
    change(folder)
    err = refused(command, parts, tmp_path, option, folder)
    assert "unmerged adapter" in err
    assert "merge_and_unload()" in err


def one_shard_is_missing(folder):
    model = AutoModelForCausalLM.from_pretrained(folder)
    (folder / "model.safetensors").unlink()
    model.save_pretrained(folder, max_shard_size="40KB")
    (folder / "model-00002-of-00003.safetensors").unlink(missing_ok=True)
    sorted(folder.glob("model-*.safetensors"))[-1].unlink()


def only_pickle(folder):
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def without(*names):
    return lambda folder: edit_weights(folder, lambda w: [w.pop(n) for n in names])


def with_tensor(name, tensor):
    return lambda folder: edit_weights(folder, lambda w: w.update({name: tensor}))


def with_tokens(*tokens):
    """Adds them to the tokenizer alone."""

    def change(folder):
        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        tokenizer.add_special_tokens(list(tokens))
        tokenizer.save(str(folder / "tokenizer.json"))

    return change


def with_template(single, **ids):
    """What the tokenizer puts around a text."""

    def change(folder):
        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        tokenizer.post_processor = processors.TemplateProcessing(
            single=single, special_tokens=list(ids.items())
        )
        tokenizer.save(str(folder / "tokenizer.json"))

    return change


def with_config(**changes):
    return lambda folder: edit(folder / "config.json", **changes)


def partly_turned(rope):
    more = {"original_max_position_embeddings": 64, "low_freq_factor": 1, "high_freq_factor": 4}
    rope = {"rope_type": rope, "rope_theta": 1e4, "factor": 2.0, "partial_rotary_factor": 0.5}
    return with_config(rope_parameters=rope | (more if rope["rope_type"] == "llama3" else {}))


def with_values(name, value):
    def change(folder):
        edit_weights(folder, lambda w: w[name].view(-1)[-1:].fill_(value))

    return change


def retyped(name, dtype):
    return lambda folder: edit_weights(folder, lambda w: w.update({name: w[name].to(dtype)}))


NORM = "model.norm.weight"

DAMAGES = {
    "one token more than embeddings": (with_tokens("<pad>"), "give the tokenizer that was saved"),
    "another model's tokenizer": (
        with_tokens(*(f"<{i}>" for i in range(300))), "give the tokenizer that was saved",
    ),
    "a template beyond the embeddings": (
        with_template("<x> $A", **{"<x>": 4000}), "its tokenizer has ids up to 4000",
    ),
    "int64 weights": (retyped(NORM, torch.int64), f"quantised weights ({NORM} is I64)"),
    "int64 embeddings": (retyped("model.embed_tokens.weight", torch.int64), "is I64"),
    "bool weights": (retyped(NORM, torch.bool), f"quantised weights ({NORM} is BOOL)"),
    "not a number": (with_values(NORM, float("nan")), f"NaN or infinite weights ({NORM}"),
    "infinite": (with_values("lm_head.weight", float("-inf")), "(lm_head.weight, as float32)"),
    "infinite as float32": (
        lambda f: edit_weights(f, lambda w: w.update({NORM: w[NORM].double() * 1e300})),
        "NaN or infinite weights",
    ),
    "not causal": (with_config(is_causal=False), "is_causal false"),
    "linear and partly turned": (partly_turned("linear"), "partial_rotary_factor 0.5"),
    "yarn and partly turned": (partly_turned("yarn"), "partial_rotary_factor 0.5"),
    "llama3 and partly turned": (partly_turned("llama3"), "partial_rotary_factor 0.5"),
    "quantised by bitsandbytes": (
        lambda f: edit(f / "config.json", quantization_config={"quant_method": "bitsandbytes"}),
        "quantised weights (quantization_config bitsandbytes)",
    ),
    "int8 weights": (
        with_tensor("model.layers.0.mlp.up_proj.weight", torch.zeros(96, 48, dtype=torch.int8)),
        "quantised weights (model.layers.0.mlp.up_proj.weight is I8)",
    ),
    "fp8 weights": (
        with_tensor(
            "model.layers.0.mlp.up_proj.weight", torch.zeros(96, 48).to(torch.float8_e4m3fn)
        ),
        "quantised weights",
    ),
    "gptq": (with_tensor("x.qweight", torch.zeros(2, 2, dtype=torch.int32)), "quantised weights"),
    "a shard is missing": (one_shard_is_missing, "lacks the shard model-0000"),
    "pickle alone": (only_pickle, "holds pickle weights (pytorch_model.bin)"),
    "no head, not tied": (without("lm_head.weight"), "lacks lm_head.weight, and its config.json"),
    "no embeddings": (
        without("model.embed_tokens.weight"), "lacks tensors: model.embed_tokens.weight",
    ),
    "a layer too many": (
        with_tensor("model.layers.2.mlp.up_proj.weight", torch.zeros(96, 48)),
        "has unknown tensors: model.layers.2.mlp.up_proj.weight",
    ),
    "a misshapen tensor": (
        with_tensor("model.norm.weight", torch.zeros(3)), "has misshapen tensors: model.norm",
    ),
    "damaged": (lambda f: (f / "model.safetensors").write_bytes(b"x" * 99), "is damaged"),
    "a config that is none": (lambda f: (f / "config.json").write_text("[]"), "no JSON object"),
    "an unknown rope": (
        lambda f: edit(
            f / "config.json", rope_parameters={"rope_type": "mrope", "rope_theta": 1e4}
        ),
        "rotary scaling 'mrope' is not supported",
    ),
    "generation settings that are none": (
        lambda f: (f / "generation_config.json").write_text("{"), "not readable JSON",
    ),
}  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_language_model_that_is_not_whole_floats_is_refused(
    command, parts, copied, tmp_path, damage
):
    change, says = DAMAGES[damage]
    folder = copied("qwen3")
    change(folder)
    assert says in refused(command, parts, tmp_path, "--llm", folder)


@pytest.mark.parametrize(
    ("option", "part", "change", "says"),
    [
        ("--prompt", "clip-text", without("text_projection.weight"), "lacks tensors: text_proj"),
        ("--vision", "clip-vision", without("visual_projection.weight"), "lacks tensors: visual"),
        (
            "--vision",
            "siglip",
            with_tensor("vision_model.extra", torch.zeros(2)),
            "unknown tensors",
        ),
        ("--vision", "clip", without("vision_model.pre_layrnorm.bias"), "lacks tensors: vision"),
        (
            "--vision", "clip", with_values("visual_projection.weight", float("nan")),
            "infinite weights (visual_projection.weight",
        ),
        (
            "--prompt", "clip", retyped("text_model.final_layer_norm.bias", torch.int64),
            "text_model.final_layer_norm.bias is I64",
        ),
    ],
)  # fmt: skip
def test_a_tower_with_other_tensors_than_its_config_says_is_refused(
    command, parts, copied, tmp_path, option, part, change, says
):
    folder = copied(part)
    change(folder)
    assert says in refused(command, parts, tmp_path, option, folder)


@pytest.mark.parametrize("part", ["clip", "clip-text", "siglip"])
def test_a_prompt_towers_tokenizer_must_have_its_ids(command, parts, copied, tmp_path, part):
    folder = copied(part)
    with_tokens("<other>")(folder)
    assert "give the tokenizer that" in refused(command, parts, tmp_path, "--prompt", folder)


@pytest.mark.parametrize("single", ["$A", "<s> $A", "$A </s> <s>"])
@pytest.mark.parametrize("end", [3, 2])
def test_a_clip_towers_tokenizer_must_end_a_text_where_the_tower_pools_it(
    command, parts, copied, tmp_path, single, end
):
    folder = copied("clip-text")
    with_config(eos_token_id=end)(folder)
    with_template(single, **{"<s>": 2, "</s>": 3})(folder)
    err = refused(command, parts, tmp_path, "--prompt", folder)
    assert "does not end a text" in err
    assert "CLIPTokenizerFast" in err


def test_padding_saved_with_a_tokenizer_hides_no_end(composed, parts, copied):
    folder = copied("clip-text")
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.enable_padding(length=20, pad_id=1)
    tokenizer.save(str(folder / "tokenizer.json"))
    composed(parts / "qwen2", "clip", folder)


def test_a_clip_tower_that_is_not_causal_is_refused(command, parts, copied, tmp_path):
    folder = copied("clip-text")
    with_config(is_causal=False)(folder)
    assert "is_causal false" in refused(command, parts, tmp_path, "--prompt", folder)


def vision_tower(folder, family, **changes):
    """Saves a random vision half; `changes` go to its config."""
    size = {
        "hidden_size": 48, "num_hidden_layers": 1, "num_attention_heads": 2,
        "intermediate_size": 64, "image_size": 64, "patch_size": 16, "projection_dim": 32,
    }  # fmt: skip
    if family == "clip":
        model = CLIPVisionModelWithProjection(CLIPVisionConfig(**(size | changes)))
    else:
        model = SiglipVisionModel(SiglipVisionConfig(**(size | changes)))
    model.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("family", ["clip", "siglip"])
@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"num_channels": 1}, "takes 1 channels"),
        ({"num_channels": 4}, "takes 4 channels"),
        ({"image_size": 15}, "image_size 15 and patch_size 16"),
        ({"image_size": 45, "patch_size": 15}, "patch size of 15 is odd"),
    ],
)
def test_a_tower_that_cannot_look_at_views_is_refused(
    command, parts, tmp_path, family, changes, says
):
    folder = vision_tower(tmp_path / "eye", family, **changes)
    chosen = ["--vision", folder, "--prompt", parts / family, "--llm", parts / "qwen2"]
    code, _, err = command("compose", *chosen, "-o", tmp_path / "ck")
    assert code == 2
    assert says in err


def test_a_siglip_tower_without_its_head_is_refused_for_that(command, parts, tmp_path):
    folder = vision_tower(tmp_path / "eye", "siglip", vision_use_head=False)
    chosen = ["--vision", folder, "--prompt", parts / "siglip", "--llm", parts / "qwen2"]
    code, _, err = command("compose", *chosen, "-o", tmp_path / "ck")
    assert code == 2
    assert "no pooling head" in err
    assert "48" not in err


@pytest.mark.parametrize("family", ["clip", "siglip"])
@pytest.mark.parametrize(("image_px", "patch_px", "view_px"), [(62, 14, 56), (60, 16, 48)])
def test_a_view_is_what_the_towers_patches_cover(
    composed, parts, tmp_path, family, image_px, patch_px, view_px
):
    from geomag_edge.model.geomag import load_checkpoint

    eye = vision_tower(tmp_path / "eye", family, image_size=image_px, patch_size=patch_px)
    out, said = composed(parts / "qwen2", eye, family)
    assert any(f"cover {view_px} of {image_px} px" in note for note in said["notes"])
    model = load_checkpoint(out)
    assert model.config.view_px == view_px == model.config.grid * patch_px
    views = torch.rand(1, 3, view_px, view_px)
    tokens, _, features = model.encoder(views)
    assert tokens.shape[1] == model.config.grid**2
    assert features.shape[-1] == 2 * model.config.grid
    for edge in (views[..., -1], views[..., -1, :]):  # its last pixels are seen, too
        before = tokens
        edge.add_(1)
        tokens = model.encoder(views)[0]
        assert not torch.equal(tokens, before)
    size = {"image_size": image_px, "patch_size": patch_px}
    assert (
        model.config.__class__(
            vision_config={"model_type": f"{family}_vision_model", **size}
        ).view_px
        == view_px
    )  # a checkpoint that still says the old size


@pytest.mark.parametrize(
    "changes",
    [
        {"image_mean": [0.5], "image_std": [0.5]},
        {"image_mean": 0.5, "image_std": 0.5},
        {"image_mean": [123.7, 116.3, 103.5], "image_std": [58.4, 57.1, 57.4]},
        {"image_mean": [0.5] * 3, "image_std": [0.5, 0.0, 0.5]},
        {"image_mean": [10**30] * 3, "image_std": [0.5] * 3},
    ],
)
def test_a_normalisation_that_is_none_is_refused(command, parts, copied, tmp_path, changes):
    folder = copied("clip")
    edit(folder / "preprocessor_config.json", **changes)
    assert "three numbers in 0..1" in refused(command, parts, tmp_path, "--vision", folder)


@pytest.mark.parametrize(
    ("tied", "head"),
    [
        (True, "its own"), (True, "the embeddings"), (True, "absent"), (False, "its own"),
        (False, "the embeddings"),
    ],
)  # fmt: skip
def test_a_composed_language_model_gives_transformers_own_logits(
    composed, make_text_config, tokenizers, tmp_path, vocab_size, tied, head
):
    from geomag_edge.model.geomag import GeoMagForConditionalGeneration, load_checkpoint

    folder = tmp_path / "llm"
    torch.manual_seed(3)
    config = make_text_config("llama", tie_word_embeddings=tied)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    words = tokenizers[0].to_str().replace("[SEG]", "<unused>")
    (folder / "tokenizer.json").write_text(words)  # [SEG] will be one row more than the model has

    def change(weights):
        embeddings = weights["model.embed_tokens.weight"]
        weights.pop("lm_head.weight", None)
        if head == "its own":
            weights["lm_head.weight"] = embeddings + 0.3 * torch.randn_like(embeddings)
        elif head == "the embeddings":
            weights["lm_head.weight"] = embeddings.clone()

    edit_weights(folder, change)
    out, said = composed(folder)
    assert any("both stay" in note for note in said["notes"]) == (tied and head == "its own")
    ids = torch.tensor([[5, 6, 7, 8]])
    theirs = AutoModelForCausalLM.from_pretrained(folder)(ids).logits
    model = load_checkpoint(out)
    ours = model.language_model(input_ids=ids).logits[..., :vocab_size]
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)
    model.save_pretrained(tmp_path / "again")
    again = GeoMagForConditionalGeneration.from_pretrained(tmp_path / "again")
    torch.testing.assert_close(
        again.language_model(input_ids=ids).logits[..., :vocab_size], theirs, rtol=0, atol=1e-5
    )
    stays_tied = tied and head != "its own"
    assert load_checkpoint(tmp_path / "again").config.text_config.tie_word_embeddings == stays_tied
    assert ("language_model.lm_head.weight" in load_file(out / "model.safetensors")) != stays_tied


def test_a_tied_model_that_keeps_only_its_head_is_whole(composed, copied, vocab_size):
    from geomag_edge.model.geomag import load_checkpoint

    folder = copied("qwen2")
    edit(folder / "config.json", tie_word_embeddings=True)

    def only_head(weights):
        weights["lm_head.weight"] = weights.pop("model.embed_tokens.weight")

    edit_weights(folder, only_head)
    out, _ = composed(folder)
    ids = torch.tensor([[5, 6, 7, 8]])
    theirs = AutoModelForCausalLM.from_pretrained(folder)(ids).logits
    ours = load_checkpoint(out).language_model(input_ids=ids).logits[..., :vocab_size]
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)


ENDS = {
    "generation_config alone": ({"eos_token_id": None}, {"eos_token_id": 3}, {}, [3]),
    "a list of two": ({"eos_token_id": 3}, {"eos_token_id": [3, 2]}, {}, [3, 2]),
    "generation_config before config": ({"eos_token_id": 2}, {"eos_token_id": 3}, {}, [3]),
    "config alone": ({"eos_token_id": [3, 2]}, None, {}, [3, 2]),
    "duplicates": ({"eos_token_id": 2}, {"eos_token_id": [3, 3, 2, 3]}, {}, [3, 2]),
    "empty, then the config": ({"eos_token_id": 3}, {"eos_token_id": []}, {}, [3]),
    "out of the vocabulary": ({"eos_token_id": 2}, {"eos_token_id": [3, 99999, -1]}, {}, [3]),
    "the tokenizer's alone": ({"eos_token_id": None}, None, {"eos_token": "</s>"}, [3]),
    "the tokenizer's in its long form": (
        {"eos_token_id": None}, None, {"eos_token": {"content": "</s>"}}, [3],
    ),
    "the tokenizer's besides": ({"eos_token_id": 2}, None, {"eos_token": "</s>"}, [2, 3]),
}  # fmt: skip


@pytest.mark.parametrize("case", ENDS)
def test_an_answers_ends_are_found_wherever_the_model_keeps_them(composed, copied, case):
    from geomag_edge.model.processor import GeoMagProcessor

    config, generation, tokenizer, ends = ENDS[case]
    folder = copied("qwen3")
    edit(folder / "config.json", **config)
    (folder / "generation_config.json").unlink()
    if generation is not None:
        edit(folder / "generation_config.json", **generation)
    if tokenizer:
        edit(folder / "tokenizer_config.json", **tokenizer)
    out, said = composed(folder)
    assert list(GeoMagProcessor.from_pretrained(out).coder.settings.eos_token_ids) == ends
    carried = json.loads((out / "generation_config.json").read_text())["eos_token_id"]
    assert carried == (ends if len(ends) > 1 else ends[0])
    assert any("99999" in note for note in said["notes"]) == ("vocabulary" in case)


@pytest.mark.parametrize("token", ["<|eot_id|>", "<|im_end|>"])
def test_a_chat_models_end_of_a_turn_ends_an_answer_and_is_noted(
    composed, copied, token, vocab_size
):
    from geomag_edge.model.processor import GeoMagProcessor

    folder = copied("llama")
    with_tokens(token)(folder)
    model = AutoModelForCausalLM.from_pretrained(folder)
    model.resize_token_embeddings(vocab_size + 1, mean_resizing=False)
    model.save_pretrained(folder)
    out, said = composed(folder)
    ends = GeoMagProcessor.from_pretrained(out).coder.settings.eos_token_ids
    assert ends == (3, vocab_size)
    assert any(token in note for note in said["notes"])


@pytest.mark.parametrize("declared", [None, [], -1, 99999, [99999, -1]])
def test_a_model_that_ends_nowhere_is_refused(command, parts, copied, tmp_path, declared):
    folder = copied("qwen3")
    edit(folder / "config.json", eos_token_id=declared)
    (folder / "generation_config.json").unlink()
    err = refused(command, parts, tmp_path, "--llm", folder)
    assert "names no token that ends an answer" in err
    assert "generation_config.json" in err


@pytest.mark.parametrize("padding", [-1, 99999, None])
def test_beginning_and_padding_are_carried_where_they_are_tokens(composed, copied, padding):
    folder = copied("llama")
    edit(folder / "config.json", pad_token_id=padding, bos_token_id=None)
    edit(folder / "generation_config.json", bos_token_id=2, pad_token_id=padding)
    out, _ = composed(folder)
    carried = json.loads((out / "generation_config.json").read_text())
    assert carried == {"bos_token_id": 2, "eos_token_id": 3}


def test_generation_settings_that_greedy_answers_leave_out_are_noted(composed, copied):
    folder = copied("qwen2")
    edit(folder / "generation_config.json", repetition_penalty=1.3, temperature=0.7, do_sample=True)
    notes = composed(folder)[1]["notes"]
    assert len([n for n in notes if "repetition_penalty 1.3" in n]) == 1
    assert not any("temperature" in note for note in notes)


EFFECTIVE = {
    "min_new_tokens": 5, "min_length": 30, "exponential_decay_length_penalty": [5, 1.1],
    "guidance_scale": 1.5, "forced_bos_token_id": 0, "forced_eos_token_id": 3,
    "stop_strings": ["."], "suppress_tokens": [7], "begin_suppress_tokens": [7],
    "bad_words_ids": [[7]], "no_repeat_ngram_size": 3, "repetition_penalty": 1.1, "num_beams": 4,
    "sequence_bias": [[[7], 1.0]],
}  # fmt: skip
IDLE = {
    "min_new_tokens": 0, "min_length": 0, "exponential_decay_length_penalty": None,
    "guidance_scale": 1.0, "forced_bos_token_id": None, "stop_strings": [], "suppress_tokens": [],
    "begin_suppress_tokens": [], "bad_words_ids": None, "no_repeat_ngram_size": 0,
    "repetition_penalty": 1.0, "num_beams": 1, "sequence_bias": {},
}  # fmt: skip


@pytest.mark.parametrize("place", ["generation_config.json", "config.json"])
def test_each_setting_that_would_change_a_greedy_answer_has_its_note(parts, copied, place):
    from transformers import AutoConfig

    from geomag_edge.model.loading.ends import carry_generation

    def notes_of(settings):
        folder = copied("qwen2")
        if place == "config.json":
            (folder / "generation_config.json").unlink()
        data = json.loads((folder / place).read_text())
        (folder / place).write_text(json.dumps(data | settings))
        notes = []
        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        carry_generation(
            folder, AutoConfig.from_pretrained(parts / "qwen2"), tokenizer, notes.append
        )
        shutil.rmtree(folder)
        return notes

    notes = notes_of(EFFECTIVE)
    assert len(notes) == len(EFFECTIVE)
    for key in EFFECTIVE:
        assert sum(f" {key} " in note and place in note for note in notes) == 1
    assert notes_of(IDLE) == []


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3"])
def test_a_sound_model_is_composed_without_a_note(composed, parts, family):
    assert composed(parts / family)[1]["notes"] == []


@pytest.mark.parametrize(
    ("name", "form"),
    [(None, "canonical"), ("SiglipTokenizer", "canonical"), ("Siglip2Tokenizer", "lower"),
     ("GemmaTokenizerFast", "lower")],
)  # fmt: skip
def test_a_siglip_towers_spelling_comes_from_its_tokenizers_class(composed, copied, name, form):
    from geomag_edge.model.processor import GeoMagProcessor

    prompt = copied("siglip")
    edit(prompt / "tokenizer_config.json", tokenizer_class=name)
    out, _ = composed(copied("qwen2"), "siglip", prompt)
    assert GeoMagProcessor.from_pretrained(out).coder.settings.psc_text_form == form


def test_an_own_head_and_all_ends_reach_the_bundle(composed, copied, tmp_path):
    from geomag_edge.export.exporter import export_bundle
    from geomag_edge.manifest import Bundle

    folder = copied("qwen3")
    edit(folder / "config.json", tie_word_embeddings=True, eos_token_id=None)
    edit(folder / "generation_config.json", eos_token_id=[3, 2])
    out, _ = composed(folder)
    export_bundle(out, tmp_path / "bundle")
    bundle = Bundle.open(tmp_path / "bundle")
    assert bundle.manifest.prompt.eos_token_ids == (3, 2)
    assert bundle.manifest.prompt.text_form == bundle.manifest.prompt.psc_text_form == "lower"
    theirs = AutoModelForCausalLM.from_pretrained(folder)
    embeds = theirs.get_input_embeddings()(torch.tensor([[5, 6, 7, 8]]))
    feed = {
        "inputs_embeds": embeds.detach().numpy(),
        "attention_mask": np.ones((1, 4), np.int64),
        "position_ids": np.arange(4)[None],
    }
    decoder = bundle.manifest.decoder
    for i in range(decoder.layers):
        for part in ("key", "value"):
            past = np.zeros((1, decoder.kv_heads, 0, decoder.head_dim), np.float32)
            feed[f"past_key_values.{i}.{part}"] = past
    path = str(bundle.graph("llm", "fp32"))
    logits = onnxruntime.InferenceSession(path).run(["logits"], feed)[0][0, 0]
    expected = theirs(inputs_embeds=embeds).logits[0, -1].detach().numpy()
    np.testing.assert_allclose(logits[: len(expected)], expected, atol=1e-4)
