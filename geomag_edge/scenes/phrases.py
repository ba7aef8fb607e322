"""The words of prompts and answers: names, paraphrases and a closed vocabulary.

Everything is lower case without punctuation, so a tokenizer can be a list of words. Prompts use
every name of a class; answers use the first.
"""

from __future__ import annotations

import random
import string

from . import catalog

NAMES: dict[str, tuple[tuple[str, str], ...]] = {
    "building": (("building", "buildings"), ("house", "houses")),
    "road": (("road", "roads"), ("street", "streets")),
    "ship": (("ship", "ships"), ("boat", "boats"), ("vessel", "vessels")),
    "aircraft": (("aircraft", "aircraft"), ("plane", "planes"), ("airplane", "airplanes")),
    "vehicle": (("vehicle", "vehicles"),),
    "storage tank": (("storage tank", "storage tanks"), ("tank", "tanks")),
    "tree": (("tree", "trees"),),
    "field": (("field", "fields"), ("crop field", "crop fields")),
    "water": (("water", "water"),),
    "solar panel": (("solar panel", "solar panels"), ("solar array", "solar arrays")),
    "pier": (("pier", "piers"), ("jetty", "jetties")),
    "runway": (("runway", "runways"),),
    "parking lot": (("parking lot", "parking lots"), ("car park", "car parks")),
    "forest": (("forest", "forest"), ("woods", "woods")),
}
"""Singular and plural by class; the first pair is the one that answers use."""

COUNTABLE = (
    "building", "ship", "aircraft", "vehicle", "storage tank", "tree", "field", "solar panel",
    "pier", "parking lot",
)  # fmt: skip
COLOURED = (
    "building", "ship", "aircraft", "vehicle", "storage tank", "tree", "field", "solar panel",
)  # fmt: skip
SIZED = ("building", "ship", "aircraft", "vehicle", "storage tank", "tree")
MASS = ("water", "forest")
MAX_COUNT = 9

WHERE = {
    "left": ("leftmost {x}", "{x} furthest to the left"),
    "right": ("rightmost {x}", "{x} furthest to the right"),
    "top": ("topmost {x}", "{x} nearest to the top"),
    "bottom": ("lowest {x}", "{x} nearest to the bottom"),
}
CORNERS = {
    "top left": ("{x} in the top left", "{x} in the top left corner"),
    "top right": ("{x} in the top right", "{x} in the top right corner"),
    "bottom left": ("{x} in the bottom left", "{x} in the bottom left corner"),
    "bottom right": ("{x} in the bottom right", "{x} in the bottom right corner"),
}
EXTREME = {"large": ("largest {x}", "biggest {x}"), "small": ("smallest {x}",)}
SIDES = {
    "left": ("{x} to the left of {y}", "{x} left of {y}"),
    "right": ("{x} to the right of {y}", "{x} right of {y}"),
    "above": ("{x} above {y}",),
    "below": ("{x} below {y}",),
}
NEAREST = ("{x} nearest {y}", "{x} closest to {y}", "{x} nearest to {y}")
NEAR = ("{x} near {y}", "{x} close to {y}", "{x} next to {y}", "{x} beside {y}", "{x} nearest {y}")
ON = {
    "road": ("{x} on the roads", "{x} on the road", "{x} driving on the road"),
    "parking lot": ("{x} in the parking lots", "{x} in the parking lot", "parked {x}"),
    "pier": ("{x} on the pier",),
    "building": ("{x} on the roofs", "{x} on the buildings", "rooftop {x}"),
}

PROMPTS: dict[str, tuple[str, ...]] = {
    "presence": (
        "is there {a}", "is there {a} in the image", "does the image show {a}", "can you see {a}",
        "does this image contain {a}", "are there any {xs}", "are there any {xs} in this image",
        "do you see any {xs} here", "are {xs} visible",
    ),
    "presence_mass": (
        "is there any {x}", "is there any {x} in the image", "does the image show {x}",
        "can you see any {x}", "does this image contain {x}", "is any {x} visible",
    ),
    "count": (
        "how many {xs} are there", "how many {xs} are in the image", "count the {xs}",
        "what is the number of {xs}", "how many {xs} can you see", "number of {xs}",
        "tell me how many {xs} this image shows",
    ),
    "compare": (
        "are there more {xs} than {ys}", "does the image show more {xs} than {ys}",
        "can you see more {xs} than {ys}",
    ),
    "compare_fewer": ("are there fewer {xs} than {ys}", "does the image show fewer {xs} than {ys}"),
    "compare_which": (
        "which are there more of {xs} or {ys}", "what is more common {xs} or {ys}",
        "are there more {xs} or more {ys}",
    ),
    "scene_class": (
        "what kind of place is this", "what does this image show", "what type of scene is this",
        "name the scene", "classify the scene", "which scene class is this",
        "describe the place in one word", "what kind of area is this",
    ),
    "describe_box": (
        "what is in this box", "describe the object in this box", "what does this box show",
        "describe this region", "what is in this region", "name the object in this box",
    ),
    "colour_box": (
        "what colour is the object in this box", "which colour is in this box",
        "what colour is this object",
    ),
    "find_box": (
        "where is {the}", "find {the}", "locate {the}", "give the box of {the}",
        "draw a box around {the}", "show me where {the} is", "in which box is {the}",
    ),
    "refer": (
        "segment {the}", "mask {the}", "outline {the}", "highlight {the}", "give the mask of {the}",
        "show the pixels of {the}", "segment out {the}", "extract the mask of {the}",
    ),
    "refer_many": (
        "segment all {xs}", "mask all {xs}", "outline every {x}", "highlight all the {xs}",
        "give the mask of all {xs}", "segment the {xs}", "mask the {xs}",
        "show the pixels of all {xs}", "segment every {x}",
    ),
}  # fmt: skip

ANSWERS: dict[str, tuple[str, ...]] = {
    "presence": ("yes", "no"),
    "absent": ("there is no {x}", "there are no {xs}"),
    "describe": ("{a}",),
    "refer": ("{the}",),
}


def article(noun: str) -> str:
    """The noun with its indefinite article."""
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


def with_attributes(name: str, size: str = "", colour: str = "") -> str:
    """A name after its size and colour, those that are given."""
    return " ".join(word for word in (size, colour, name) if word)


def words_of(text: str) -> list[str]:
    """The words of a prompt or an answer."""
    return text.split()


def _vocabulary() -> tuple[str, ...]:
    texts: list[str] = ["a", "an", "the", "yes", "no"]
    texts += [form for pairs in NAMES.values() for pair in pairs for form in pair]
    texts += list(catalog.COLOURS) + list(catalog.SIZES) + list(catalog.SCENE_CLASSES)
    texts += [str(n) for n in range(MAX_COUNT + 1)]
    groups = (WHERE, CORNERS, EXTREME, SIDES, ON, PROMPTS, ANSWERS)
    texts += [text for group in groups for forms in group.values() for text in forms]
    texts += [*NEAREST, *NEAR]
    slot_free = (
        "".join(literal for literal, *_ in string.Formatter().parse(text)) for text in texts
    )
    return tuple(sorted({word for text in slot_free for word in text.split()}))


VOCABULARY = _vocabulary()
"""Every word that prompts and answers can use, sorted."""


def corpus(seed: int, n: int) -> list[str]:
    """Random sentences, prompts and answers in turn, to train a tokenizer with; no scene needed."""
    rng = random.Random(f"corpus:{seed}")
    out: list[str] = []
    while len(out) < n:
        kind = rng.choice(list(PROMPTS))
        cls, other = rng.sample(list(NAMES), 2)
        one, many = rng.choice(NAMES[cls])
        size = rng.choice(("", *catalog.SIZES))
        colour = rng.choice(("", *catalog.COLOURS))
        one, many = with_attributes(one, size, colour), with_attributes(many, size, colour)
        the = f"the {_random_referent(rng, one, f'the {rng.choice(NAMES[other])[0]}')}"
        text = rng.choice(PROMPTS[kind])
        out.append(
            text.format(x=one, xs=many, a=article(one), the=the, ys=rng.choice(NAMES[other])[1])
        )
        answer = rng.choice((
            rng.choice(ANSWERS["presence"]), str(rng.randrange(MAX_COUNT + 1)), colour, many,
            rng.choice(catalog.SCENE_CLASSES), the, article(one),
            rng.choice(ANSWERS["absent"]).format(x=one, xs=many),
        ))  # fmt: skip
        out.append(answer or "yes")
    return out[:n]


def _random_referent(rng: random.Random, one: str, anchor: str) -> str:
    forms = [text for group in (WHERE, CORNERS, EXTREME, SIDES, ON) for text in group.values()]
    form = rng.choice([("{x}",), ("{x}",), NEAREST, NEAR, *forms])
    return rng.choice(form).format(x=one, y=anchor)
