"""Prompts and answers are true: every one is checked again from the objects and their pixels."""

import re
from collections import Counter

import numpy as np
import pytest

from geomag_edge.errors import InputError
from geomag_edge.scenes import (
    COLOURS,
    SCENE_CLASSES,
    VOCABULARY,
    corpus,
    make_questions,
    render_scene,
)
from geomag_edge.scenes.phrases import NAMES, PROMPTS

KINDS = {
    "image": {"presence", "count", "compare", "scene_class"},
    "region": {"describe_box", "find_box", "absent"},
    "pixel": {"refer_one", "refer_many", "relation", "absent"},
}
FORMS = sorted(
    ((form, cls) for cls, pairs in NAMES.items() for pair in pairs for form in pair),
    key=lambda pair: -len(pair[0]),
)


@pytest.fixture(scope="module")
def asked():
    """Scenes and their questions."""
    scenes = [render_scene(seed, 384) for seed in range(700, 735)]
    return [(scene, make_questions(scene, seed=1, per_level=8)) for scene in scenes]


def things_named(text: str) -> list[tuple[str, str, str]]:
    """Every (class, size, colour) that a text names, in order."""
    pattern = "|".join(re.escape(form) for form, _ in FORMS)
    cls_of = dict(reversed(FORMS))
    found = []
    for match in re.finditer(rf"((?:\w+ )*?)\b({pattern})\b", text):
        before = match.group(1).split()[-2:]
        size = next((w for w in before if w in ("small", "large")), "")
        colour = next((w for w in before if w in COLOURS), "")
        found.append((cls_of[match.group(2)], size, colour))
    return found


def matching(scene, cls, size="", colour=""):
    return [
        o
        for o in scene.objects
        if o.cls == cls and size in ("", o.size) and colour in ("", o.colour)
    ]


def test_every_kind_and_level_is_asked(asked):
    seen = Counter((q.level, q.kind) for _, questions in asked for q in questions)
    assert {level for level, _ in seen} == set(KINDS)
    for level, kinds in KINDS.items():
        assert {kind for asked_level, kind in seen if asked_level == level} == kinds
        total = sum(n for (asked_level, _), n in seen.items() if asked_level == level)
        assert total == 8 * len(asked)
        for kind in kinds:
            assert seen[level, kind] > 0.04 * total


def test_same_seed_same_questions():
    scene = render_scene(3, 256)
    again = make_questions(render_scene(3, 256), seed=5, per_level=4)
    assert make_questions(scene, seed=5, per_level=4) == again
    assert make_questions(scene, seed=6, per_level=4) != again


def test_presence_counts_and_comparisons_are_recounted(asked):
    answers = Counter()
    for scene, questions in asked:
        for q in questions:
            if q.kind == "presence":
                ((cls, size, colour),) = things_named(q.prompt)
                assert q.answer == ("yes" if matching(scene, cls, size, colour) else "no"), q
                answers[q.answer] += 1
            elif q.kind == "count":
                ((cls, size, colour),) = things_named(q.prompt)
                assert q.answer == str(len(matching(scene, cls, size, colour))), q
            elif q.kind == "compare":
                one, two = (len(matching(scene, *named)) for named in things_named(q.prompt))
                if q.answer in ("yes", "no"):
                    assert (q.answer == "yes") == (one < two if "fewer" in q.prompt else one > two)
                else:
                    winner = things_named(q.prompt)[one < two][0]
                    assert q.answer == NAMES[winner][0][1]
            elif q.kind == "scene_class":
                assert q.answer == scene.scene_class
    assert 0.35 < answers["yes"] / answers.total() < 0.65


def test_boxes_are_those_of_the_objects_described(asked):
    for scene, questions in asked:
        by_id = {o.id: o for o in scene.objects}
        for q in questions:
            if q.kind not in ("describe_box", "find_box"):
                continue
            (target,) = (by_id[i] for i in q.targets)
            assert q.boxes == (target.box,)
            if q.prompt in PROMPTS["colour_box"]:
                assert q.answer == target.colour
                continue
            cls, size, colour = things_named(q.answer)[0]
            assert (cls, size or target.size, colour or target.colour) == (
                target.cls, target.size, target.colour,
            )  # fmt: skip


def test_attributes_pick_out_exactly_the_targets(asked):
    """Prompts with nothing but class, size and colour mean all that match, and no more."""
    checked = 0
    plain = {t.replace("{the}", "the {}").replace("{xs}", "{}").replace("{x}", "{}")
             for t in PROMPTS["refer"] + PROMPTS["refer_many"]}  # fmt: skip
    for scene, questions in asked:
        for q in questions:
            if q.kind not in ("refer_one", "refer_many"):
                continue
            words = [w for w in q.prompt.split() if w in COLOURS or w in ("small", "large")]
            named = things_named(q.prompt)
            noun = next(form for form, _ in FORMS if re.search(rf"\b{form}\b", q.prompt))
            if q.prompt not in {t.format(" ".join([*words, noun])) for t in plain}:
                continue
            found = {o.id for o in matching(scene, *named[0])}
            assert found == set(q.targets), q
            checked += 1
    assert checked > 50


def test_absent_targets_are_absent(asked):
    for scene, questions in asked:
        for q in questions:
            if q.kind == "absent":
                ((cls, size, colour),) = things_named(q.prompt)
                assert not matching(scene, cls, size, colour), q
                assert q.targets == q.boxes == ()
                assert re.match(r"there (is|are) no ", q.answer)


def test_the_nearest_is_nearest_in_pixels(asked):
    """Distances between masks, brute force, agree with relations stated from outlines."""
    checked = 0
    for scene, questions in asked:
        by_id = {o.id: o for o in scene.objects}
        for q in questions:
            match = re.search(r"(nearest|closest to|nearest to) the (?!top|bottom)", q.prompt)
            if not match or len(q.targets) != 1:
                continue
            (anchor,) = matching(scene, *things_named(q.prompt[match.start() :])[0])
            target = by_id[q.targets[0]]
            rivals = [o for o in matching(scene, target.cls) if o.id != target.id]
            spot = np.argwhere(scene.mask([anchor.id]))
            own = distance(np.argwhere(scene.mask([target.id])), spot)
            assert all(own <= distance(np.argwhere(scene.mask([o.id])), spot) for o in rivals), q
            checked += 1
    assert checked >= 5


def distance(one, two) -> float:
    one, two = one[:: max(1, len(one) // 400)], two[:: max(1, len(two) // 2000)]
    return float(np.sqrt(((one[:, None] - two[None]) ** 2).sum(-1)).min())


def test_targets_can_be_seen(asked):
    for scene, questions in asked:
        for q in questions:
            assert len(set(q.targets)) == len(q.targets)
            if q.targets:
                assert scene.mask(q.targets).any()


def test_words_are_closed_and_plain(asked):
    words = {
        w for _, questions in asked for q in questions for w in (q.prompt + " " + q.answer).split()
    }
    assert words <= set(VOCABULARY)
    assert list(VOCABULARY) == sorted(set(VOCABULARY))
    assert len(VOCABULARY) < 256
    assert all(re.fullmatch(r"[a-z]+|\d", w) for w in VOCABULARY)
    sentences = corpus(0, 6000)
    assert len(sentences) == 6000
    assert sentences == corpus(0, 6000)
    assert {w for s in sentences for w in s.split()} == set(VOCABULARY)
    assert set(" ".join(SCENE_CLASSES).split()) <= set(VOCABULARY)


def test_negative_counts_are_refused():
    with pytest.raises(InputError, match="0 or more"):
        make_questions(render_scene(0, 64), 0, per_level=-1)
