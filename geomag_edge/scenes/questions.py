"""Prompts and answers about a scene, at the three levels, true by construction."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

from ..errors import InputError
from . import phrases
from .catalog import ALL_CLASSES, CLASS_COLOURS
from .inventory import Inventory, Referent
from .scene import RenderedScene

Box = tuple[float, float, float, float]

LEVELS = ("image", "region", "pixel")


@dataclass(frozen=True)
class Question:
    """One prompt and its answer.

    `boxes` (x0, y0, x1, y1 in px of the whole image) are what the prompt points at for
    `describe_box`, and what the answer points at for `find_box`. `targets` are the ids of the
    objects to find or to segment, none for an absent target.
    """

    level: str  # one of LEVELS
    prompt: str
    answer: str
    boxes: tuple[Box, ...]
    targets: tuple[int, ...]
    kind: str  # presence, count, compare, scene_class, describe_box, find_box, refer_one, ...


def make_questions(scene: RenderedScene, seed: int, per_level: int = 4) -> list[Question]:
    """Asks `per_level` questions of each level, the same for the same scene and seed."""
    if per_level < 0:
        raise InputError(f"{per_level} questions a level were asked for; give 0 or more")
    asker = _Asker(scene, random.Random(f"questions:{scene.seed}:{seed}"))
    return [q for level in LEVELS for q in asker.ask(level, per_level)]


class _Asker:
    def __init__(self, scene: RenderedScene, rng: random.Random) -> None:
        self.scene, self.rng = scene, rng
        self.facts = Inventory(scene)
        self.plans: dict[str, list[tuple[float, Callable[[], Question | None]]]] = {
            "image": [
                (0.28, self.presence), (0.32, self.count), (0.16, self.compare),
                (0.24, self.scene_class),
            ],
            "region": [
                (0.42, self.describe), (0.46, self.find), (0.12, lambda: self.absent("region")),
            ],
            "pixel": [
                (0.3, self.refer_one), (0.28, self.refer_many), (0.28, self.relation),
                (0.14, lambda: self.absent("pixel")),
            ],
        }  # fmt: skip

    def ask(self, level: str, count: int) -> list[Question]:
        """Distinct prompts while the scene has them."""
        weights, makers = zip(*self.plans[level], strict=True)
        maker, left = makers[0], 0
        out: list[Question] = []
        seen: set[tuple[str, tuple[Box, ...]]] = set()
        tries = 0
        while len(out) < count:
            tries += 1
            if left == 0:  # the kind first, then some patience with it, or hard kinds get rare
                maker, left = self.rng.choices(makers, weights)[0], 10
            left -= 1
            if tries > 40 * count + 100:  # a scene with little to say: only what always works
                maker = self.presence if level == "image" else (lambda: self.absent(level))
            made = maker()
            if made is None:
                continue
            key = made.prompt, made.boxes if made.kind == "describe_box" else ()
            if key in seen and tries < 60 * count + 200:
                continue
            seen.add(key)
            out.append(made)
            left = 0
        return out

    def presence(self) -> Question | None:
        """Yes and no in equal parts; half of the questions name a colour too."""
        want = self.rng.random() < 0.5
        cls, colour = self._present() if want else self._missing()
        if not cls:
            return None
        mass = cls in phrases.MASS
        template = self.rng.choice(phrases.PROMPTS["presence_mass" if mass else "presence"])
        one, many = self._names(cls, colour)
        prompt = template.format(a=phrases.article(one), x=one, xs=many)
        return Question("image", prompt, "yes" if want else "no", (), (), "presence")

    def _names(self, cls: str, colour: str = "") -> tuple[str, str]:
        """Singular and plural under one of the class's names; a "house" may be any building."""
        names = phrases.NAMES[cls][:1] if cls == "building" else phrases.NAMES[cls]
        one, many = self.rng.choice(names)
        return (
            phrases.with_attributes(one, "", colour),
            phrases.with_attributes(many, "", colour),
        )

    def _present(self) -> tuple[str, str]:
        clear = [o for o in self.scene.objects if o.id in self.facts.clear]
        if not clear:
            return "", ""
        cls = self.rng.choice(sorted({o.cls for o in clear}))
        if cls in phrases.COLOURED and self.rng.random() < 0.5:
            return cls, self.rng.choice(sorted({o.colour for o in clear if o.cls == cls}))
        return cls, ""

    def _missing(self) -> tuple[str, str]:
        """A class, or a class in a colour, that the scene does not show at all."""
        for _ in range(30):
            cls = self.rng.choice(ALL_CLASSES)
            found = self.facts.by_class[cls]
            if not found:
                if self.facts.can_deny(cls):
                    colour = ""
                    if cls in phrases.COLOURED and self.rng.random() < 0.4:
                        colour = self.rng.choice(CLASS_COLOURS[cls])
                    return cls, colour
                continue
            if cls in phrases.COLOURED:
                colours = {o.colour for o in found}
                left = [c for c in CLASS_COLOURS[cls] if c not in colours]
                if left and self.facts.can_deny(cls):
                    return cls, self.rng.choice(left)
        return "", ""

    def count(self) -> Question | None:
        """How many, from 0 to 9; zero in one question of eight."""
        if self.rng.random() < 0.12:
            cls, colour = self._missing()
            if cls not in phrases.COUNTABLE:
                return None
            number = 0
        else:
            options = []
            for cls in phrases.COUNTABLE:
                if not self.facts.by_class[cls] or not self.facts.all_clear(cls):
                    continue
                tints: list[str] = [""]
                if cls in phrases.COLOURED:
                    tints += sorted({o.colour for o in self.facts.by_class[cls]})
                for tint in tints:
                    number = len(self.facts.select(cls, "", tint))
                    if number <= phrases.MAX_COUNT:
                        options.append((cls, tint, number))
            if not options:
                return None
            # First a number, then something that occurs so often: no number is the usual answer.
            numbers = sorted({option[2] for option in options})
            number = self.rng.choices(numbers, [0.5 if k == 1 else 1.0 for k in numbers])[0]
            cls, colour, _ = self.rng.choice([o for o in options if o[2] == number])
        template = self.rng.choice(phrases.PROMPTS["count"])
        many = self._names(cls, colour)[1]
        return Question("image", template.format(xs=many), str(number), (), (), "count")

    def compare(self) -> Question | None:
        """Which of two classes is more frequent, by a clear margin."""
        usable = [c for c in phrases.COUNTABLE if self.facts.all_clear(c)]
        if len(usable) < 2:
            return None
        one, two = self.rng.sample(usable, 2)
        if not self.facts.by_class[one] and not self.facts.by_class[two]:
            return None
        m, n = len(self.facts.by_class[one]), len(self.facts.by_class[two])
        if max(m, n) < 1.5 * min(m, n) + 1:
            return None
        xs, ys = self._names(one)[1], self._names(two)[1]
        form = self.rng.choice(("compare", "compare", "compare_fewer", "compare_which"))
        prompt = self.rng.choice(phrases.PROMPTS[form]).format(xs=xs, ys=ys)
        if form == "compare_which":
            answer = phrases.NAMES[one if m > n else two][0][1]
        else:
            answer = "yes" if (m > n) == (form == "compare") else "no"
        return Question("image", prompt, answer, (), (), "compare")

    def scene_class(self) -> Question | None:
        """What kind of place, where one kind holds most of the scene."""
        if self.scene.spec.class_share < 0.5:
            return None
        prompt = self.rng.choice(phrases.PROMPTS["scene_class"])
        return Question("image", prompt, self.scene.scene_class, (), (), "scene_class")

    def describe(self) -> Question | None:
        """What a box holds: its size, colour and class, or its colour alone."""
        cls = self._a_class()
        pool = [o for o in self.facts.by_class[cls] if o.id in self.facts.clear] if cls else []
        if not pool or cls == "road":
            return None
        o = self.rng.choice(pool)
        x0, y0, x1, y1 = o.box
        if o.area_px < 0.15 * (x1 - x0) * (y1 - y0):  # the box shows mostly something else
            return None
        if cls in phrases.COLOURED and self.rng.random() < 0.25:
            prompt = self.rng.choice(phrases.PROMPTS["colour_box"])
            return Question("region", prompt, o.colour, (o.box,), (o.id,), "describe_box")
        name = phrases.with_attributes(
            phrases.NAMES[cls][0][0],
            o.size if cls in phrases.SIZED else "",
            o.colour if cls in phrases.COLOURED else "",
        )
        answer = name if cls in phrases.MASS else phrases.article(name)
        prompt = self.rng.choice(phrases.PROMPTS["describe_box"])
        return Question("region", prompt, answer, (o.box,), (o.id,), "describe_box")

    def _a_class(self) -> str:
        """A class that the scene shows; rare classes come as often as frequent ones."""
        return self.rng.choice(self.facts.present) if self.facts.present else ""

    def _one(self) -> Referent | None:
        """A phrase for exactly one object."""
        cls = self._a_class()
        if not cls:
            return None
        if self.rng.random() < 0.55:
            return self.facts.attributed(self.rng, cls)
        return self.facts.placed(self.rng, cls)

    def find(self) -> Question | None:
        """Where one described object is."""
        referent = self._one()
        if referent is None and self.rng.random() < 0.5:
            related = self.facts.related(self.rng, self._a_class()) if self._a_class() else None
            referent = related[0] if related and not related[1] else None
        if referent is None or len(referent.ids) != 1:
            return None
        prompt = self.rng.choice(phrases.PROMPTS["find_box"]).format(the=f"the {referent.phrase}")
        target = self.facts.by_id[referent.ids[0]]
        if target.cls == "road":  # a slanting road's box holds nearly everything else
            return None
        box = target.box
        return Question(
            "region", prompt, f"the {referent.answer}", (box,), referent.ids, "find_box"
        )

    def refer_one(self) -> Question | None:
        """The mask of one described object."""
        referent = self._one()
        if referent is None:
            return None
        prompt = self.rng.choice(phrases.PROMPTS["refer"]).format(the=f"the {referent.phrase}")
        return Question("pixel", prompt, f"the {referent.answer}", (), referent.ids, "refer_one")

    def refer_many(self) -> Question | None:
        """The mask of all objects of a kind."""
        cls = self._a_class()
        referent = self.facts.group(self.rng, cls) if cls else None
        if referent is None:
            return None
        templates = phrases.PROMPTS["refer_many"]
        if cls in phrases.MASS:
            templates = phrases.PROMPTS["refer"]
        template = self.rng.choice(templates)
        words = referent.phrase
        if "{x}" in template:  # "every" takes the singular
            one, many = next(p for p in phrases.NAMES[cls] if words.endswith(p[1]))
            words = words.removesuffix(many) + one
        prompt = template.format(xs=words, x=words, the=f"the {words}")
        return Question("pixel", prompt, f"the {referent.answer}", (), referent.ids, "refer_many")

    def relation(self) -> Question | None:
        """The mask of what stands in a relation to something else."""
        cls = self._a_class()
        if cls not in phrases.COUNTABLE:
            return None
        made = self.facts.related(self.rng, cls)
        if made is None:
            return None
        referent, _plural = made
        prompt = self.rng.choice(phrases.PROMPTS["refer"]).format(the=f"the {referent.phrase}")
        return Question("pixel", prompt, f"the {referent.answer}", (), referent.ids, "relation")

    def absent(self, level: str) -> Question | None:
        """Asks for what the scene does not show; half of the time something similar is there."""
        cls, colour = self._missing()
        if not cls:
            return None
        if level == "region":
            if cls in phrases.MASS:
                return None
            one, _ = self._names(cls, colour)
            template = self.rng.choice(phrases.PROMPTS["find_box"])
            plural = False
            prompt = template.format(the=f"the {one}")
        else:
            plural = cls not in phrases.MASS and self.rng.random() < 0.5
            one, many = self._names(cls, colour)
            template = self.rng.choice(phrases.PROMPTS["refer_many" if plural else "refer"])
            prompt = template.format(the=f"the {one}", x=one, xs=many)
        canonical = phrases.with_attributes(phrases.NAMES[cls][0][plural], "", colour)
        answer = phrases.ANSWERS["absent"][plural].format(x=canonical, xs=canonical)
        return Question(level, prompt, answer, (), (), "absent")
