"""What only training computes: points of masks, looks of the language model, moved boxes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from geomag_edge.budgets import TokenBudget
from geomag_edge.model.mask_head import GeoMagMaskHead
from geomag_edge.model.presets import preset_config
from geomag_edge.model.train.losses.masking import VIEWS, choose_views, decode_points
from geomag_edge.model.train.losses.pointers import _Boxes, _Looks, token_weights
from geomag_edge.model.train.samples.data import ViewLabels
from geomag_edge.model.train.samples.targets import JITTER, answer_text
from geomag_edge.prompts import named_boxes
from geomag_edge.scenes.questions import Question


@pytest.mark.parametrize("corner", [(0, 0), (0, 1), (1, 0), (1, 1)])
def test_points_are_those_of_the_whole_mask(corner: tuple[int, int]) -> None:
    torch.manual_seed(0)
    config = preset_config("nano")
    head = GeoMagMaskHead(config)
    torch.nn.init.normal_(head.place)
    features = torch.randn(2, config.mask["feature_dim"], head.side, head.side)
    queries = torch.randn(1, config.text_config.hidden_size)
    with torch.no_grad():
        whole, quality = head(features, queries)
        points, same = decode_points(head, features, queries.expand(2, -1), corner)
    row, column = corner
    torch.testing.assert_close(points, whole[0, :, row::2, column::2], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(same, quality[0])


@given(st.lists(st.booleans(), min_size=1, max_size=5), st.integers(0, 2**32 - 1))
def test_a_query_is_decoded_in_the_whole_and_where_its_target_is(
    shows: list[bool], seed: int
) -> None:
    views = choose_views(np.array(shows), np.random.default_rng(seed))
    assert views[0] == 0
    assert len(set(views)) == len(views) == min(VIEWS, len(shows))
    if any(shows[1:]):
        assert any(shows[i] for i in views[1:])


def _label(patches: list[int], grid: int, views: int) -> ViewLabels:
    shown = [np.zeros((grid * grid, 2), bool) for _ in range(views)]
    for view in shown:
        view[patches, 1] = True
    return ViewLabels(np.zeros((views, 1, 1), np.int32), shown, np.zeros((0, 0, 0)), np.zeros(0))


def test_tokens_weigh_what_their_patches_show() -> None:
    label = _label([0, 1, 4, 5, 15], grid=4, views=2)  # the top left quarter and the last patch
    weights = token_weights(label, [1], TokenBudget(2, 1, 1), grid=4)
    assert weights.tolist() == [1.0, 0.0, 0.0, 0.25, 5 / 16]
    only = token_weights(label, [1], TokenBudget(2, 1, 1), grid=4, only=1)
    assert only.tolist() == [0.0, 0.0, 0.0, 0.0, 5 / 16]


def test_a_look_at_the_right_tokens_costs_nothing_and_elsewhere_much() -> None:
    looks = _Looks()
    looks.add(0, [1], np.array([0, 1, 1], np.float32))  # row 1 behind 4: one in front, 3 visual
    right, wrong = (torch.full((1, 6, 6), -30.0) for _ in range(2))
    right[0, 5, 2:4] = 0.0
    wrong[0, 5, 1] = 0.0
    assert float(looks.loss(right, front=1, shared=4)) == pytest.approx(0, abs=1e-5)
    assert float(looks.loss(wrong, front=1, shared=4)) > 20


def test_nothing_to_look_at_is_no_loss() -> None:
    looks = _Looks()
    looks.add(0, [0], np.zeros(3, np.float32))
    assert float(looks.loss(torch.randn(1, 4, 4), 0, 3)) == 0
    assert float(_Boxes().loss(torch.randn(1, 4, 4), torch.nn.Identity(), 3)) == 0


@given(st.integers(0, 2**32 - 1), st.floats(10, 80), st.floats(100, 190))
def test_a_moved_box_stays_near(seed: int, low: float, high: float) -> None:
    box = (low, low, high, high)
    question = Question("region", "find it", "the ship", (box,), (1,), "find_box")
    views = np.array([[0, 0, 200, 200]], np.float32)
    text = answer_text(question, views, np.random.default_rng(seed))
    found = np.array(named_boxes(text, views, 200, 200)[0][0])
    assert np.abs(found - box).max() <= JITTER * (high - low) + 0.2
    exact = np.array(named_boxes(answer_text(question, views), views, 200, 200)[0][0])
    assert np.abs(exact - box).max() <= 0.11
