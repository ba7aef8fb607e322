"""Peers: forms that disagree are not timed, absent ones are named, the peers' answers are ours."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from geomag_edge.benchmarks.peers import decode, query
from geomag_edge.benchmarks.peers.agreement import (
    Answer,
    PeersDisagreeError,
    agreement,
    require_same,
    require_same_tokens,
)
from geomag_edge.errors import EngineError, InputError, MissingExtraError
from geomag_edge.runtime.chain.pipeline import Pipeline


def an_answer() -> Answer:
    rng = np.random.default_rng(3)
    boxes = np.array([[0, 0, 64, 64], [8, 8, 24, 24]], np.float32)
    logits = rng.standard_normal((2, 8, 8)).astype(np.float32)
    return Answer([0, 5, 7], logits, np.array([0.5, 0.6], np.float32), boxes, (64, 64))


def test_an_answer_agrees_with_itself() -> None:
    found = agreement(an_answer(), an_answer())
    assert found == {"tokens": 1.0, "mask_iou": 1.0, "views": 1.0, "logits": 0.0}


def test_forms_in_fp32_that_say_other_tokens_are_refused() -> None:
    answer = an_answer()
    other = replace(answer, token_ids=[0, 5, 8])
    with pytest.raises(PeersDisagreeError, match="different tokens"):
        require_same({"a": answer, "b": other}, "a")
    with pytest.raises(PeersDisagreeError, match="from token 2 on"):
        require_same_tokens({"a": [0, 5, 7], "b": [0, 5, 8]}, "a")
    with pytest.raises(PeersDisagreeError, match="from token 2 on"):
        require_same_tokens({"a": [0, 5, 7], "b": [0, 5]}, "a")


def test_forms_in_fp32_whose_masks_drift_or_whose_views_differ_are_refused() -> None:
    answer = an_answer()
    drifted = replace(answer, mask_logits=answer.mask_logits + 0.01)
    with pytest.raises(PeersDisagreeError, match="masks"):
        require_same({"a": answer, "b": drifted}, "a")
    boxes = answer.boxes.copy()
    boxes[1] += 1
    with pytest.raises(PeersDisagreeError, match="other views"):
        require_same({"a": answer, "b": replace(answer, boxes=boxes)}, "a")
    broken = replace(answer, mask_logits=np.full_like(answer.mask_logits, np.nan))
    with pytest.raises(PeersDisagreeError):
        require_same({"a": answer, "b": broken}, "a")


def a_query(bundle: Path, forms: str, rounds: int = 1) -> argparse.Namespace:
    return argparse.Namespace(
        bundle=bundle, checkpoint=None, name="nano", forms=forms, ours="ort-cpu/fp32",
        scene_px=512, new_tokens=2, rounds=rounds, threads=1,
    )  # fmt: skip


def test_a_query_in_pytorch_is_the_chains_query(bundle: Path) -> None:
    asked = a_query(bundle, "eager, reference;eager;openvino int8;ours")
    report = query.measure(long_answers(asked))
    assert set(report["ratios"]) == {"eager, reference", "eager"}
    assert all(found["tokens"] == 1 for found in report["agreement"].values())
    assert report["agreement"]["eager"]["logits"] < 1e-4
    table = query.as_markdown(report)
    assert "| eager |" in table
    assert "Left out: openvino int8 (the bundle has no int8 graphs" in table
    json.dumps(report)


def long_answers(args: argparse.Namespace) -> argparse.Namespace:
    """As many tokens, up to 6, as the model says of its own accord."""
    with Pipeline.load(args.bundle) as pipe:
        scene = query.render_scene(query.SCENE_SEED, args.scene_px).image
        said = pipe(scene, query.PROMPT, "pixel", 6, query.PREFIX)
    args.new_tokens = max(1, len(said.token_ids) - 1)
    return args


def test_an_answer_that_ends_early_is_not_timed(
    bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def timed() -> None:
        raise AssertionError("it was timed")

    short = query.Opened(timed, an_answer)
    monkeypatch.setattr(query, "open_form", lambda *asked: short)
    args = a_query(bundle, "ours")
    args.new_tokens = 16
    with pytest.raises(InputError, match="ended its answer after 3 tokens"):
        query.measure(args)


def test_an_absent_peer_costs_a_line_that_says_how_to_get_it(tmp_path: Path) -> None:
    absent = replace(decode.PEERS[0], module="no_such_peer")
    with pytest.raises(MissingExtraError, match=r"no_such_peer.*pip install"):
        decode.open_peer(absent, sys.executable, tmp_path, tmp_path, 1)


def test_a_peer_that_cannot_convert_says_why(tmp_path: Path) -> None:
    broken = replace(decode.PEERS[0], module="json", convert=("no_such_converter",))
    with pytest.raises(EngineError, match=r"cannot convert the model: .*no_such_converter"):
        decode.open_peer(broken, sys.executable, tmp_path, tmp_path / "work", 1)


def test_a_peer_that_cannot_load_says_why(tmp_path: Path) -> None:
    eager = next(peer for peer in decode.PEERS if peer.kind == "transformers")
    with pytest.raises(EngineError, match="Hugging Face eager"):
        decode.open_peer(eager, sys.executable, tmp_path, tmp_path, 1)


def test_hugging_face_in_its_own_process_decodes_what_the_bundle_does(
    bundle: Path, tmp_path: Path
) -> None:
    eager = tuple(peer for peer in decode.PEERS if peer.kind == "transformers")
    args = argparse.Namespace(
        bundle=bundle, checkpoint=None, name="nano", genai_python=sys.executable,
        optimum_python=sys.executable, prompt_tokens=20, new_tokens=5, rounds=1, threads=1,
    )  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(decode, "PEERS", (*eager, replace(decode.PEERS[0], module="no_such_peer")))
        report = decode.measure(args, tmp_path)
    assert report["same_ids_as_fp32"]["Hugging Face eager fp32"] == 1
    assert "no_such_peer" in report["missing"]["onnxruntime-genai fp32"]
    assert "no int8+int4-llm" in report["missing"]["ours int4"]
    assert "Not there: onnxruntime-genai fp32" in decode.as_markdown(report)
