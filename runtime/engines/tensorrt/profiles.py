"""Optimisation profiles from TMRA's token budgets: which sizes each graph will see, as data.

A profile gives every dynamic axis (`geomag_edge.graphs`) the triple (least, usual, most). Ranges of
one graph's profiles join without a gap, so every size up to `Limits` runs on exactly one of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import pairwise

from geomag_edge.errors import BudgetError
from geomag_edge.graphs import CHAIN
from geomag_edge.manifest import Manifest
from geomag_edge.targets import Target

PROMPT_TOKENS = 256
"""Text around the picture that a prefill profile leaves room for, a forced start included."""

USUAL_PROMPT_TOKENS = 32
"""Text that a prefill profile is tuned for."""

ANSWER_TOKENS = 1024
"""Room in the cache for the answer, beyond the longest prefill."""

QUERIES = 8
"""[SEG] masks that one call of the mask head takes; the runtime splits more."""

GROWING, FIXED = CACHES = ("growing", "fixed")
"""The language model's cache: concatenated to at every step, or of full length and updated."""

Span = tuple[int, int, int]
"""Least, usual, most."""


@dataclass(frozen=True)
class Limits:
    """The most that a set of engines takes; what a runtime preallocates.

    Attributes:
        views: n of the encoder and the projector.
        mask_views: n of the mask head, the whole and its crops.
        queries: m of the mask head.
        pooled: q of the projector.
        prompt_ids: L of psc_select.
        prompt: T of a prefill.
        capacity: N+T, the cache's length.
    """

    views: int
    mask_views: int
    queries: int
    pooled: int
    prompt_ids: int
    prompt: int
    capacity: int

    def to_json(self) -> dict[str, int]:
        """The form in build.json."""
        return asdict(self)


@dataclass(frozen=True)
class Profile:
    """One optimisation profile of one graph: axis -> span."""

    name: str
    axes: Mapping[str, Span]

    def shapes(
        self, inputs: Mapping[str, tuple[Sequence[str | int], Sequence[int]]]
    ) -> dict[str, tuple[list[int], list[int], list[int]]]:
        """Least, usual and most shape of each input that has a dynamic axis.

        Args:
            inputs: name -> the names of its axes, and its sizes (-1 where dynamic).
        """
        found = {}
        for name, (axes, sizes) in inputs.items():
            if all(size >= 0 for size in sizes):
                continue
            spans = [
                (size, size, size) if size >= 0 else self.axes[str(axis)]
                for axis, size in zip(axes, sizes, strict=True)
            ]
            low, usual, high = ([span[i] for span in spans] for i in range(3))
            found[name] = (low, usual, high)
        return found

    def holds(self, sizes: Mapping[str, int]) -> bool:
        """Whether sizes of some axes lie inside the profile."""
        return all(self.axes[a][0] <= size <= self.axes[a][2] for a, size in sizes.items())


def limits_of(manifest: Manifest) -> Limits:
    """What the bundle's own budgets can ask for."""
    crops = manifest.psc.max_crops
    visual = max(b.visual_tokens for b in manifest.budgets.values())
    context = manifest.prompt.context
    prompt = min(context, visual + PROMPT_TOKENS)
    return Limits(
        views=max(1, crops),
        mask_views=1 + crops,
        queries=QUERIES,
        pooled=manifest.view.grid**2,
        prompt_ids=manifest.prompt.psc_pad_to or manifest.prompt.psc_context,
        prompt=prompt,
        capacity=min(context, prompt + ANSWER_TOKENS),
    )


def profiles_of(
    manifest: Manifest, many: bool = True, cache: str = GROWING
) -> dict[str, list[Profile]]:
    """The profiles of every graph of the chain.

    Args:
        manifest: whose budgets, PSC and context decide.
        many: the target takes many profiles an engine. With one an engine, each profile's engine
            holds the weights once more, so the prefill of all levels is one profile there.
        cache: of `CACHES`; a fixed one's length is no axis.
    """
    limits = limits_of(manifest)
    crops = max((b.crops for b in manifest.budgets.values()), default=0)
    table = {
        "encoder": _views(limits.views, crops),
        "psc_select": [
            Profile("prompt", {"L": _span(manifest.prompt.psc_pad_to or 1, 16, limits.prompt_ids)})
        ],
        "projector": [
            Profile(
                "views",
                {"n": (1, 1, limits.views), "q": _span(1, _usual_grid(manifest), limits.pooled)},
            )
        ],
        "embed": [Profile("tokens", {"B": (1, 1, 1), "T": (1, 1, limits.prompt)})],
        "llm": [_decode(manifest, limits), *_prefill(manifest, limits, many)],
        "mask_head": [
            Profile(
                "masks",
                {
                    "n": (1, min(1 + crops, limits.mask_views), limits.mask_views),
                    "m": (1, 1, limits.queries),
                },
            )
        ],
    }
    if cache == FIXED:
        table["llm"] = [_without_length(p) for p in table["llm"]]
    return {name: table[name] for name in CHAIN}


@dataclass(frozen=True)
class Plan:
    """One engine to be: its file's stem, its graph and its profiles."""

    stem: str
    graph: str
    profiles: tuple[Profile, ...]


def plans_of(
    manifest: Manifest, target: Target, graphs: Sequence[str] = CHAIN, cache: str = GROWING
) -> list[Plan]:
    """The engines that a target wants: one a graph, or one a profile."""
    many = target.profiles == "many"
    plans = []
    for graph, profiles in profiles_of(manifest, many, cache).items():
        if graph not in graphs:
            continue
        if many or len(profiles) == 1:
            plans.append(Plan(graph, graph, tuple(profiles)))
        else:
            plans += [Plan(f"{graph}.{p.name}", graph, (p,)) for p in profiles]
    return plans


def up_to(manifest: Manifest, level: str) -> Manifest:
    """The manifest with only the budgets that cost no more than a level's.

    Raises:
        BudgetError: no such level.
    """
    if level not in manifest.budgets:
        raise BudgetError(f"unknown level {level!r}: choose one of {', '.join(manifest.budgets)}")
    most = manifest.budgets[level]
    kept = {
        name: b
        for name, b in manifest.budgets.items()
        if b.visual_tokens <= most.visual_tokens and b.crops <= most.crops
    }
    crops = min(manifest.psc.max_crops, max(b.crops for b in kept.values()))
    return replace(manifest, budgets=kept, psc=replace(manifest.psc, max_crops=max(1, crops)))


def _views(most: int, usual: int) -> list[Profile]:
    """The global view alone, which every prompt needs, and groups of crops."""
    whole = Profile("whole", {"n": (1, 1, 1)})
    if most < 2:
        return [whole]
    return [whole, Profile("crops", {"n": _span(2, usual, most)})]


def _usual_grid(manifest: Manifest) -> int:
    return max(b.global_grid**2 for b in manifest.budgets.values())


def _decode(manifest: Manifest, limits: Limits) -> Profile:
    visual = sorted(b.visual_tokens for b in manifest.budgets.values())
    usual = visual[len(visual) // 2] + 2 * USUAL_PROMPT_TOKENS
    return _llm("decode", (1, 1, 1), _span(1, usual, limits.capacity - 1))


def _prefill(manifest: Manifest, limits: Limits, many: bool) -> list[Profile]:
    """One profile for each level's number of visual tokens, or one for all."""
    levels = sorted({b.visual_tokens for b in manifest.budgets.values()})
    if not many:
        levels = levels[-1:]
    ends = [0, *(min(v + PROMPT_TOKENS, limits.prompt) for v in levels)]
    return [
        _llm(
            f"prefill-{visual}",
            _span(low + 1, visual + USUAL_PROMPT_TOKENS, high),
            (0, 0, 0),
        )
        for visual, (low, high) in zip(levels, pairwise(ends), strict=True)
        if high > low
    ]


def _llm(name: str, new: Span, past: Span) -> Profile:
    least, usual, most = (n + t for n, t in zip(past, new, strict=True))
    return Profile(name, {"B": (1, 1, 1), "T": new, "N": past, "N+T": (least, usual, most)})


def _without_length(profile: Profile) -> Profile:
    """An LLM's profile for a cache whose length never changes."""
    return Profile(profile.name, {a: s for a, s in profile.axes.items() if a not in ("N", "N+T")})


def _span(low: int, usual: int, high: int) -> Span:
    """A span with the usual size pulled inside."""
    return low, min(max(usual, low), high), high
