"""Greedy decoding against a plain loop that recomputes everything, on the real graphs."""

import numpy as np
import pytest

from geomag_edge.errors import BundleError
from geomag_edge.graphs import past_names
from geomag_edge.manifest import Bundle
from geomag_edge.runtime.chain.decode import LanguageModel, Prompt, Stop, decode_greedily
from geomag_edge.runtime.engines.opening import open_engine

SEG = 0
BEFORE, AFTER = [40, 41, 42], [50, 51]


@pytest.fixture(scope="module")
def graphs(bundle):
    opened = Bundle.open(bundle)
    engine = open_engine("ort-cpu", opened)
    llm, embed = engine.session("llm"), engine.session("embed")
    yield llm, embed, opened.manifest.decoder
    llm.close()
    embed.close()


@pytest.fixture(scope="module")
def visual():
    return np.random.default_rng(0).normal(size=(6, 48)).astype(np.float32)


def slow_greedy(llm, embed, shape, sequence, stop, count):
    """Every step from scratch: ids, and the hidden state that each of them ends in."""
    none = np.zeros((1, shape.kv_heads, 0, shape.head_dim), np.float32)
    ids, states = [], None
    while True:
        length = len(sequence)
        out = llm.run(
            {
                "inputs_embeds": sequence[None],
                "attention_mask": np.ones((1, length), np.int64),
                "position_ids": np.arange(length)[None],
                **dict.fromkeys(past_names(shape.layers), none),
            }
        )
        states = out["hidden_states"][0]
        token = int(out["logits"][0, 0].argmax())
        if len(ids) == count or token in stop:
            return ids, states
        ids.append(token)
        new = embed.run({"input_ids": np.array([[token]])})["inputs_embeds"][0]
        sequence = np.concatenate([sequence, new])


def embedded(embed, ids):
    return embed.run({"input_ids": np.array([ids], np.int64)})["inputs_embeds"][0]


def decode(graphs, visual, prefix=(), seg=SEG, stop=(3,), count=8, **settings):
    return decode_greedily(
        LanguageModel(*graphs),
        Prompt(BEFORE, visual, AFTER, prefix),
        Stop(seg, stop, count),
        **settings,
    )


@pytest.fixture(scope="module")
def truth(graphs, visual):
    llm, embed, shape = graphs
    sequence = np.concatenate([embedded(embed, BEFORE), visual, embedded(embed, AFTER)])
    return slow_greedy(llm, embed, shape, sequence, (), 8)


def test_the_cache_changes_nothing(graphs, visual, truth):
    decoded = decode(graphs, visual, stop=())
    assert decoded.ids == truth[0]
    assert len(set(decoded.ids)) > 1
    assert decoded.stopped == "length"


def test_an_end_token_stops_and_is_not_part_of_the_answer(graphs, visual, truth):
    end = truth[0][3]
    first = truth[0].index(end)
    decoded = decode(graphs, visual, stop=(999, end))
    assert decoded.ids == truth[0][:first]
    assert decoded.stopped == "end"
    assert decoded.steps == first


def test_an_answer_may_end_before_it_began(graphs, visual, truth):
    decoded = decode(graphs, visual, stop=(truth[0][0],))
    assert (decoded.ids, decoded.steps, decoded.stopped) == ([], 0, "end")
    assert decoded.queries.shape == (0, 48)


def test_each_mask_query_is_the_hidden_state_of_its_own_token(graphs, visual, truth):
    ids, states = truth
    answers = states[len(states) - len(ids) :]
    for token in set(ids):
        decoded = decode(graphs, visual, seg=token, stop=())
        expected = answers[[i for i, t in enumerate(ids) if t == token]]
        assert decoded.queries.dtype == np.float32
        np.testing.assert_allclose(decoded.queries, expected, rtol=1e-4, atol=1e-4)


def test_a_forced_prefix_continues_as_if_it_had_been_said(graphs, visual, truth):
    ids, states = truth
    decoded = decode(graphs, visual, prefix=ids[:3], seg=ids[1], stop=(), count=5)
    assert decoded.ids == ids
    answers = states[len(states) - len(ids) :]
    expected = answers[[i for i, t in enumerate(ids) if t == ids[1]]]
    np.testing.assert_allclose(decoded.queries, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("count", [0, 1, 2])
def test_at_most_so_many_new_tokens_are_made(graphs, visual, truth, count):
    decoded = decode(graphs, visual, prefix=truth[0][:1], stop=(), count=count)
    assert decoded.ids == truth[0][: 1 + count]


def test_the_last_step_runs_only_for_a_mask(graphs, visual, truth):
    last = truth[0][7]
    unseen = next(i for i in range(300) if i not in truth[0])
    assert decode(graphs, visual, seg=unseen, stop=()).steps == 7
    assert decode(graphs, visual, seg=last, stop=()).steps == 8


def test_new_ids_are_told_one_by_one(graphs, visual, truth):
    told = []
    decode(graphs, visual, stop=(), on_ids=lambda ids: told.append(list(ids)))
    assert told == [truth[0][:n] for n in range(1, 9)]


def test_nothing_before_the_picture_is_allowed(graphs, visual):
    decoded = decode_greedily(LanguageModel(*graphs), Prompt([], visual, AFTER), Stop(SEG, (), 2))
    assert len(decoded.ids) == 2


class Bent:
    """A session one of whose outputs has another shape than its contract says."""

    def __init__(self, inner, output, shape):
        self.inner, self.output, self.shape = inner, output, shape

    def run(self, feeds, keep=frozenset()):
        return self.inner.run(feeds, keep) | {self.output: np.zeros(self.shape, np.float32)}


@pytest.mark.parametrize(
    ("output", "shape"),
    [("logits", (1, 1, 0)), ("logits", (1, 0, 9)), ("logits", (9,)), ("hidden_states", (1, 1, 7)),
     ("hidden_states", (0, 11, 48)), ("inputs_embeds", (1, 0, 48)), ("inputs_embeds", (3, 5, 7))],
)  # fmt: skip
def test_a_graph_that_gives_other_shapes_than_it_declares_is_refused(graphs, visual, output, shape):
    llm, embed, decoder = graphs
    bent = (
        (llm, Bent(embed, output, shape))
        if output == "inputs_embeds"
        else (Bent(llm, output, shape), embed)
    )
    with pytest.raises(BundleError, match="a graph gives"):
        decode((*bent, decoder), visual)
