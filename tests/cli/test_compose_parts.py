"""`compose` and what trained parts bring along: adapters, heads, ends of answers, damages."""

import json
import shutil

import numpy as np
import onnxruntime
import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM


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


DAMAGES = {
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
    ],
)
def test_a_tower_with_other_tensors_than_its_config_says_is_refused(
    command, parts, copied, tmp_path, option, part, change, says
):
    folder = copied(part)
    change(folder)
    assert says in refused(command, parts, tmp_path, option, folder)


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
    tokenizer = Tokenizer.from_str(tokenizers[0].to_str())
    tokenizer.add_special_tokens(["<|im_end|>"])  # one row more than the model has
    tokenizer.save(str(folder / "tokenizer.json"))

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
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.add_special_tokens([token])
    tokenizer.save(str(folder / "tokenizer.json"))
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
