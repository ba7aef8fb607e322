"""The cached decoder against Hugging Face's own model, for every supported family."""

import pytest
import torch
from transformers import AutoModelForCausalLM, set_seed

from geomag_edge.errors import CheckpointError
from geomag_edge.model.decoder import CachedDecoder

YARN = {
    "rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0,
    "original_max_position_embeddings": 64,
}  # fmt: skip
LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 10000.0, "factor": 8.0, "low_freq_factor": 1.0,
    "high_freq_factor": 4.0, "original_max_position_embeddings": 64,
}  # fmt: skip
CASES = {
    "llama": ("llama", {}),
    "llama, tied": ("llama", {"tie_word_embeddings": True}),
    "llama, llama3 rope": ("llama", {"rope_parameters": LLAMA3}),
    "llama, linear rope": (
        "llama", {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}},
    ),
    "llama, yarn": ("llama", {"rope_parameters": YARN}),
    "llama, biases": ("llama", {"attention_bias": True, "mlp_bias": True}),
    "llama, no grouped heads": ("llama", {"num_key_value_heads": 4}),
    "llama, one kv head": ("llama", {"num_key_value_heads": 1}),
    "llama, wide heads": ("llama", {"head_dim": 32}),
    "llama, other epsilon": ("llama", {"rms_norm_eps": 0.1}),
    "llama, part of each head turned": (
        "llama",
        {"rope_parameters": {
            "rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5,
        }},
    ),
    "qwen2": ("qwen2", {}),
    "qwen2, tied": ("qwen2", {"tie_word_embeddings": True}),
    "qwen3": ("qwen3", {}),
    "qwen3, tied and biased": ("qwen3", {"tie_word_embeddings": True, "attention_bias": True}),
}  # fmt: skip
CLOSE = {"rtol": 1e-4, "atol": 1e-4}


@pytest.fixture(scope="module", params=CASES, ids=str)
def model(request, make_text_config):
    """A tiny Hugging Face model with weights, biases and norms all away from their defaults."""
    family, changes = CASES[request.param]
    set_seed(1)
    model = AutoModelForCausalLM.from_config(make_text_config(family, **changes))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias") or "norm" in name:
                parameter.add_(0.3 * torch.randn_like(parameter))
    return model.eval().requires_grad_(False)


def no_past(decoder, batch):
    return [torch.zeros(batch, decoder.kv_heads, 0, decoder.head_dim)] * (2 * decoder.layers)


def step(decoder, embeds, mask, positions, past):
    with torch.inference_mode():
        return decoder(embeds, mask, positions, past)


def ones(batch, length):
    return torch.ones(batch, length, dtype=torch.int64)


@pytest.fixture(scope="module")
def truth(model):
    """Embeddings [1,11,D], and what Hugging Face makes of them in one pass without a cache."""
    embeds = torch.randn(
        1, 11, model.config.hidden_size, generator=torch.Generator().manual_seed(2)
    )
    out = model(inputs_embeds=embeds, use_cache=False, output_hidden_states=True)
    return embeds, out.logits, out.hidden_states[-1]


def test_a_prefill_gives_hugging_faces_hidden_states_and_last_logits(model, truth):
    embeds, logits, hidden = truth
    decoder = CachedDecoder(model)
    got, states, present = step(
        decoder, embeds, ones(1, 11), torch.arange(11)[None], no_past(decoder, 1)
    )
    assert got.shape == (1, 1, model.config.vocab_size)
    torch.testing.assert_close(got, logits[:, -1:], **CLOSE)
    torch.testing.assert_close(states, hidden, **CLOSE)
    assert {tuple(p.shape) for p in present} == {(1, decoder.kv_heads, 11, decoder.head_dim)}


@pytest.mark.parametrize("chunks", [[4, *[1] * 7], [1] * 11, [3, 5, 3]], ids=str)
def test_decoding_through_the_cache_in_any_chunks_equals_one_pass(model, truth, chunks):
    embeds, logits, hidden = truth
    decoder = CachedDecoder(model)
    cache, done = no_past(decoder, 1), 0
    for length in chunks:
        now = slice(done, done + length)
        done += length
        got, states, cache = step(
            decoder, embeds[:, now], ones(1, done), torch.arange(done)[None, now], cache
        )
        torch.testing.assert_close(got, logits[:, done - 1 : done], **CLOSE)
        torch.testing.assert_close(states, hidden[:, now], **CLOSE)


def test_left_padded_prompts_in_a_batch_answer_as_each_alone(model):
    decoder = CachedDecoder(model)
    generator = torch.Generator().manual_seed(3)
    width = model.config.hidden_size
    prompts = [torch.randn(1, length, width, generator=generator) for length in (7, 4)]
    following = torch.randn(2, 3, width, generator=generator)

    alone = []
    for i, prompt in enumerate(prompts):
        whole = torch.cat([prompt, following[i : i + 1]], dim=1)
        alone.append(model(inputs_embeds=whole, use_cache=False).logits[0, prompt.shape[1] - 1 :])

    padding = 100 * torch.randn(1, 3, width, generator=generator)  # must have no influence
    batch = torch.cat([prompts[0], torch.cat([padding, prompts[1]], dim=1)])
    mask = ones(2, 7)
    mask[1, :3] = 0
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    logits, _, cache = step(decoder, batch, mask, positions, no_past(decoder, 2))
    got = [logits]
    for i in range(3):
        mask = torch.cat([mask, ones(2, 1)], dim=1)
        positions = mask.sum(1, keepdim=True) - 1
        logits, _, cache = step(decoder, following[:, i : i + 1], mask, positions, cache)
        got.append(logits)
    for row in range(2):
        torch.testing.assert_close(torch.cat(got, dim=1)[row], alone[row], **CLOSE)


def test_the_decoder_shares_the_models_parameters(model):
    mine = {p.data_ptr() for p in CachedDecoder(model).parameters()}
    assert mine == {p.data_ptr() for p in model.parameters()}


@pytest.mark.parametrize(
    ("family", "changes", "reason"),
    [
        ("qwen2", {"use_sliding_window": True, "max_window_layers": 0}, "sliding-window"),
        ("qwen3", {"use_sliding_window": True, "max_window_layers": 1}, "sliding-window"),
        (
            "llama",
            {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}},
            "rotary scaling 'dynamic'",
        ),
        (
            "llama",
            {
                "rope_parameters": {
                    "rope_type": "longrope", "factor": 2.0, "rope_theta": 1e4,
                    "short_factor": [1.0] * 6, "long_factor": [2.0] * 6,
                    "original_max_position_embeddings": 64,
                }
            },
            "rotary scaling 'longrope'",
        ),
        ("qwen2", {"layer_types": ["full_attention", "chunked_attention"]}, "'chunked_attention'"),
        ("qwen3", {"layer_types": ["full_attention", "linear_attention"]}, "'linear_attention'"),
        (
            "llama",
            {
                "rope_parameters": {
                    "full_attention": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}
                }
            },
            "rotary scaling 'dynamic'",
        ),
    ],
)  # fmt: skip
def test_what_the_graph_cannot_carry_is_refused(make_text_config, family, changes, reason):
    with pytest.raises(CheckpointError, match=reason):
        CachedDecoder(AutoModelForCausalLM.from_config(make_text_config(family, **changes)))
