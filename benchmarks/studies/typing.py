"""Whether a prompt's typing changes its answer: the same questions, typed as people type.

    geomag-edge export model/checkpoints/nano -o nano
    python -m geomag_edge.benchmarks.studies.typing --bundle nano [--data scenes:5:12:512]

What is measured: every question of a set is asked in several ways of typing, and weighed as `eval`
does; a question is the same where text, level, boxes' and masks' scores are those of the plain
prompt. No time is measured here.

What bounds it: nothing. A way that leaves a tower's form of the prompt alone must answer word for
word; signs do only where the towers' form (`canonical`) leaves them out.

The last line of stdout is one JSON.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

from geomag_edge.benchmarks.arguments import REQUIRED, parser_of
from geomag_edge.benchmarks.machine import described, machine
from geomag_edge.benchmarks.publish import page_of, publish, table_of
from geomag_edge.calibration import Dataset, open_dataset
from geomag_edge.calibration.evaluation.evaluate import evaluate
from geomag_edge.calibration.evaluation.records import Record
from geomag_edge.calibration.sets.items import Picture
from geomag_edge.runtime.chain.pipeline import Pipeline


def _wide(prompt: str) -> str:
    """ASCII in its full-width forms, as an East Asian keyboard types it."""
    return "".join(chr(ord(c) + 0xFEE0) if "!" <= c <= "~" else "\u3000" for c in prompt)


WAYS: dict[str, Callable[[str], str]] = {
    "plain": lambda prompt: prompt,
    "Capital first": lambda prompt: prompt[:1].upper() + prompt[1:],
    "UPPER": str.upper,
    "double spaces": lambda prompt: prompt.replace(" ", "  "),
    "full-width": _wide,
    "no-break spaces": lambda prompt: prompt.replace(" ", "\u00a0"),
    "a full stop": lambda prompt: f"{prompt}.",
    "a question mark": lambda prompt: f"{prompt}?",
}


class TypedSet:
    """A set whose prompts are typed in another way; its pictures are made once."""

    def __init__(self, data: Dataset, pictures: list[Picture], way: str):
        self.name, self.way = f"{data.name}, {way}", WAYS[way]
        self.made = pictures

    def __len__(self) -> int:
        return len(self.made)

    def pictures(self) -> Iterator[Picture]:
        """The pictures with their prompts typed."""
        for picture in self.made:
            items = [replace(item, prompt=self.way(item.prompt)) for item in picture.items]
            yield replace(picture, items=items)


def main() -> None:
    """Parses, asks, writes the result, prints the table and one JSON line."""
    args = parser_of(__doc__, bundle=REQUIRED, data="scenes:5:12:512", name="nano").parse_args()
    data = open_dataset(args.data)
    pictures = list(data.pictures())
    rows: list[dict[str, Any]] = []
    plain: list[Record] = []
    with Pipeline.load(args.bundle, "ort-cpu", "fp32", 1) as pipe:
        settings = pipe.chain.coder.settings
        for way in WAYS:
            print(f"{way}:", file=sys.stderr)
            found = evaluate(pipe, TypedSet(data, pictures, way))
            plain = plain or found.records
            rows.append(
                {
                    "way": way,
                    "questions": len(found.records),
                    "same": sum(map(_same, found.records, plain)),
                    "router": found["router"].value,
                    "answers": found["answer", "level: image"].value,
                    "mIoU": found["mIoU"].value,
                }
            )
    report = {
        "name": args.name,
        "command": f"python -m geomag_edge.benchmarks.studies.typing --bundle {args.name} "
        f"--data {args.data}",
        "machine": machine(1, ("onnxruntime", "numpy", "tokenizers")),
        "forms": {"llm": settings.text_form, "psc": settings.psc_text_form},
        "ways": rows,
    }
    publish(report, as_markdown(report), args.results, f"typing_{args.name}")


def _same(a: Record, b: Record) -> bool:
    """Whether two records of one question are the same answer."""
    return replace(a, prompt="", ms=0.0) == replace(b, prompt="", ms=0.0)


def as_markdown(report: dict[str, Any]) -> str:
    """The committed table."""
    forms = report["forms"]
    said = (
        f"{described(report['machine'])}; ort-cpu fp32. Text form of the LLM: {forms['llm']}, of "
        f"PSC: {forms['psc']}. Same: text, level and every score as with the plain prompt."
    )
    rows = (
        (r["way"], f"{r['same']} of {r['questions']}", f"{r['router']:.3f}",
         f"{r['answers']:.3f}", f"{r['mIoU']:.4f}")
        for r in report["ways"]
    )  # fmt: skip
    title = f"Typing: `{report['name']}`, the same questions as people type them"
    table = table_of("typed | same | right level | right words, image level | mIoU", rows)
    return page_of(title, report, said, table)


if __name__ == "__main__":
    main()
