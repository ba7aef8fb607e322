"""`compose` from parts as Hugging Face saves them."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer


@pytest.mark.parametrize(
    ("vision", "prompt", "llm", "also_untrained"),
    [
        ("clip", "clip", "llama", set()),
        ("siglip", "siglip", "qwen3", set()),
        ("clip-vision", "clip-text", "qwen2", set()),
        ("clip-bare-vision", "clip", "qwen2", {"encoder.projection"}),
    ],
)
def test_parts_keep_their_weights_and_the_rest_is_named_untrained(
    command, parts, tmp_path, vision, prompt, llm, also_untrained
):
    out = tmp_path / "ck"
    code, text, _ = command(
        "compose", "--vision", parts / vision, "--prompt", parts / prompt,
        "--llm", parts / llm, "-o", out, "--json",
    )  # fmt: skip
    assert code == 0
    untrained = set(json.loads(text)["untrained"])
    assert {"encoder.neck", "projector", "mask_head", "psc.router"} | also_untrained <= untrained
    assert ("encoder.projection" in untrained) == bool(also_untrained)
    made = load_file(out / "model.safetensors")
    given = load_file(parts / llm / "model.safetensors")
    for name, tensor in given.items():
        if "embed" not in name and "lm_head" not in name:
            assert torch.equal(made[f"language_model.{name}"], tensor), name
    card = (out / "README.md").read_text()
    assert all(name in card for name in untrained)


def test_tokens_are_added_and_the_embeddings_resized(command, parts, tmp_path, vocab_size):
    tokenizer = Tokenizer.from_file(str(parts / "llama" / "tokenizer.json"))
    assert tokenizer.get_vocab_size() == vocab_size
    out = tmp_path / "ck"
    command(
        "compose", "--vision", parts / "clip", "--prompt", parts / "clip",
        "--llm", parts / "llama", "-o", out,
    )  # fmt: skip
    config = json.loads((out / "config.json").read_text())
    made = Tokenizer.from_file(str(out / "tokenizer.json"))
    assert made.token_to_id("[SEG]") == config["seg_token_id"]
    rows = load_file(out / "model.safetensors")["language_model.model.embed_tokens.weight"].shape[0]
    assert rows >= made.get_vocab_size()


def test_the_same_seed_gives_the_same_checkpoint(command, parts, tmp_path):
    for name in ("a", "b"):
        command(
            "compose", "--vision", parts / "clip", "--prompt", parts / "clip",
            "--llm", parts / "qwen2", "-o", tmp_path / name, "--seed", 4,
        )  # fmt: skip
    a, b = (load_file(tmp_path / name / "model.safetensors") for name in ("a", "b"))
    assert a.keys() == b.keys()
    assert all(torch.equal(a[k], b[k]) for k in a)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"--vision": "llama"}, "must be one of"),
        ({"--llm": "clip"}, "must be one of"),
        ({"--vision": "siglip"}, "dimensions"),
        ({"--llm": "missing"}, "no config.json"),
    ],
)
def test_parts_that_do_not_fit_are_refused_in_one_line(command, parts, tmp_path, change, says):
    chosen = {"--vision": "clip", "--prompt": "clip", "--llm": "qwen2"} | change
    argv = [x for option, name in chosen.items() for x in (option, parts / name)]
    code, _, err = command("compose", *argv, "-o", tmp_path / "ck")
    assert code == 2
    assert says in err
    assert len(err.strip().splitlines()) == 1
    assert not (tmp_path / "ck").exists()


def test_a_part_without_a_tokenizer_is_refused(command, parts, tmp_path):
    bare = shutil.copytree(parts / "qwen2", tmp_path / "bare")
    (bare / "tokenizer.json").unlink()
    code, _, err = command(
        "compose", "--vision", parts / "clip", "--prompt", parts / "clip", "--llm", bare,
        "-o", tmp_path / "ck",
    )  # fmt: skip
    assert code == 2
    assert "no tokenizer.json" in err


def test_parts_and_a_preset_together_are_refused(command, parts, tmp_path):
    code, _, err = command(
        "compose", "--preset", "nano", "--llm", parts / "qwen2", "-o", tmp_path / "ck"
    )
    assert code == 2
    assert "--preset makes all parts" in err
