"""Token budgets: what a user may write, what fits, what a model refuses."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from geomag_edge.budgets import LEVELS, TokenBudget, _worth, check_budget, parse_budget
from geomag_edge.errors import BudgetError

OWN = {"image": TokenBudget(8), "region": TokenBudget(8, 2, 8), "pixel": TokenBudget(8, 4, 6)}

budgets = st.builds(
    lambda g, k, c: TokenBudget(g, k, c if k else 0),
    st.integers(1, 8),
    st.integers(0, 4),
    st.integers(1, 8),
)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("image", TokenBudget(8)),
        (" pixel ", TokenBudget(8, 4, 6)),
        ("12", TokenBudget(12)),
        ("12+4x8", TokenBudget(12, 4, 8)),
        ("3+1x1", TokenBudget(3, 1, 1)),
        ("12+0x8", TokenBudget(12, 0, 8)),
        ("192t", OWN["region"]),
        ("100000t", OWN["region"]),
        ("1t", TokenBudget(1)),
    ],
)
def test_a_budget_is_read_in_each_of_its_forms(text, expected):
    assert parse_budget(text, OWN, routed="region") == expected


@pytest.mark.parametrize(
    "text",
    [
        "", " ", "huge", "PIXEL", "12+", "12+4", "12+4x", "12x8", "+4x8", "-3", "1.5", "12 + 4x8",
        "0", "0+1x1", "4+1x0", "0t", "-1t", "t", "12+4x8t", "9" * 5000, "9" * 5000 + "t",
    ],
)  # fmt: skip
def test_anything_else_is_refused_with_one_line(text):
    with pytest.raises(BudgetError) as refusal:
        parse_budget(text, OWN, routed="pixel")
    assert "\n" not in str(refusal.value)


def test_an_unknown_budget_is_answered_with_the_forms_that_exist():
    with pytest.raises(BudgetError, match=r"'huge'.*image, region, pixel.*12\+4x8.*200t"):
        parse_budget("huge", OWN, routed="pixel")


@given(budgets)
def test_a_budget_reads_back_from_its_own_text(budget):
    assert parse_budget(str(budget), OWN, "image") == budget


@given(budgets)
def test_a_budget_reads_back_from_json_with_its_cost_derived(budget):
    data = budget.to_json()
    assert data["visual_tokens"] == budget.global_grid**2 + budget.crops * budget.crop_grid**2
    assert TokenBudget.from_json(data | {"visual_tokens": 10**9}) == budget


@given(budgets, st.integers(1, 400))
def test_a_fitted_budget_never_exceeds_the_allowance_or_any_part_of_the_full_one(full, allowance):
    fitted = full.fitted(allowance)
    assert fitted.visual_tokens <= allowance
    assert fitted.global_grid <= full.global_grid
    assert fitted.crops <= full.crops
    assert fitted.crop_grid <= full.crop_grid


@given(budgets, st.integers(0, 50))
def test_a_budget_that_fits_is_left_alone(full, spare):
    assert full.fitted(full.visual_tokens + spare) == full


@given(budgets, st.integers(1, 300), st.integers(0, 100))
def test_a_larger_allowance_never_gives_fewer_tokens(full, allowance, more):
    assert full.fitted(allowance + more).visual_tokens >= full.fitted(allowance).visual_tokens


@given(budgets, st.integers(1, 300), st.integers(0, 100))
def test_a_larger_allowance_never_shrinks_the_least_part_of_a_fitted_budget(full, allowance, more):
    def least(budget):
        parts = [budget.global_grid / full.global_grid]
        if full.crops:
            parts += [budget.crops / full.crops, budget.crop_grid / full.crop_grid]
        return min(parts)

    assert least(full.fitted(allowance + more)) >= least(full.fitted(allowance))


@pytest.mark.parametrize(
    ("allowance", "expected"),
    [(720, "12+4x12"), (360, "9+3x9"), (108, "6+2x6"), (2, "1+1x1"), (1, "1")],
)
def test_a_cut_is_shared_by_the_overview_and_the_crops(allowance, expected):
    fitted = TokenBudget(12, 4, 12).fitted(allowance)
    least = min(fitted.global_grid / 12, fitted.crops / 4, fitted.crop_grid / 12)
    named = parse_budget(expected, OWN, "image")
    assert least == min(named.global_grid / 12, named.crops / 4, named.crop_grid / 12)
    assert fitted.visual_tokens <= allowance


@pytest.mark.parametrize("parts", [(0, 0, 0), (-1, 0, 0), (4, -1, 4), (4, 1, 0), (4, 2, -3)])
def test_impossible_budgets_cannot_be_made(parts):
    with pytest.raises(BudgetError, match="not possible"):
        TokenBudget(*parts)


@pytest.mark.parametrize(
    ("budget", "reason"),
    [
        (TokenBudget(17), "finer than the encoder's 16 x 16"),
        (TokenBudget(4, 1, 17), "finer than the encoder's 16 x 16"),
        (TokenBudget(4, 5, 4), "at most 4"),
    ],
)
def test_a_model_refuses_a_budget_beyond_its_grid_or_crops(budget, reason):
    with pytest.raises(BudgetError, match=reason):
        check_budget(budget, grid=16, max_crops=4)


def test_a_model_takes_a_budget_at_its_limits():
    full = TokenBudget(16, 4, 16)
    assert check_budget(full, grid=16, max_crops=4) is full


def test_the_levels_stand_in_the_order_of_the_routers_logits():
    assert LEVELS == ("image", "region", "pixel")


@given(st.integers(1, 6), st.integers(0, 4), st.integers(1, 5), st.integers(1, 150))
def test_the_largest_that_fits_is_the_best_of_all_that_do(grid, crops, crop_grid, tokens):
    full = TokenBudget(grid, crops, crop_grid if crops else 0)
    every = [
        TokenBudget(g, k, c if k else 0)
        for g in range(1, grid + 1)
        for k in range(crops + 1)
        for c in (range(1, crop_grid + 1) if k else (0,))
    ]
    fitting = [b for b in every if b.visual_tokens <= tokens]
    best = max(fitting, key=lambda b: (_worth(b, full), b.visual_tokens, b.crops))
    assert full.fitted(tokens) == best
