"""What a nodata collar costs an answer: masks, and where PSC looks.

    python -m geomag_edge.benchmarks.studies.nodata --bundle BUNDLE

Scenes are put in a collar of pixels without data, and their pixel-level questions are asked with
and without it. The truth is what of the targets holds data. `collar` is the image with its collar,
`whole` the same image with all of its pixels, judged where the other has data; `cut` is the largest
upright square of data cut out as an image of its own, and `collar, there` the answer with the
collar, judged inside that square alone. In a frame the square is all of the data, so `cut` is what
a user gets who crops the collar away; a square that stands on its corner (the usual shape of an
orthomosaic or a satellite scene) cannot be cropped, and its `cut` shows half of it at twice the
scale, which is another image.

Nothing is timed. The last line of stdout is one JSON.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from geomag_edge.benchmarks.arguments import REQUIRED, parser_of
from geomag_edge.benchmarks.machine import described, machine
from geomag_edge.benchmarks.publish import page_of, publish, table_of
from geomag_edge.calibration import open_dataset
from geomag_edge.calibration.sets.items import Item
from geomag_edge.runtime.chain.pipeline import Pipeline

Bools = NDArray[np.bool_]
ROWS = ("collar", "whole", "collar, there", "cut")


def main() -> None:
    """Parses, asks, writes the result, prints the table and one JSON line."""
    parser = parser_of(__doc__, bundle=REQUIRED, name="nano", threads=1)
    parser.add_argument("--data", default="scenes:5:12:512", help="a set of square scenes")
    args = parser.parse_args()
    rows: list[dict[str, Any]] = []
    with Pipeline.load(args.bundle, threads=args.threads) as pipe:
        for picture in tqdm(list(open_dataset(args.data).pictures()), "scenes", disable=None):
            items = [item for item in picture.items if item.target_ids and not item.absent]
            for shape in ("corner", "frame"):
                rows += judged(pipe, np.asarray(picture.image), items, shape)
        checkpoint = str(pipe.bundle.manifest.checkpoint.get("sha256", ""))
    report = {
        "command": f"python -m geomag_edge.benchmarks.studies.nodata --bundle {args.name} "
        f"--data {args.data} --threads {args.threads}",
        "machine": machine(args.threads),
        "checkpoint": checkpoint,
        "rows": rows,
    }
    publish(report, as_markdown(report), args.results, f"nodata_{args.name}")


def collar(side_px: int, shape: str) -> tuple[Bools, slice]:
    """Half of a square image's pixels as those that hold data, bool[side,side], and the rows (and
    columns) of the largest upright square in them."""
    y, x = np.mgrid[:side_px, :side_px] + 0.5 - side_px / 2
    if shape == "corner":
        reach = side_px // 4
        valid = abs(x) + abs(y) < side_px / 2
    else:
        reach = round(side_px / 2**1.5)
        valid = np.maximum(abs(x), abs(y)) < reach
    return valid, slice(side_px // 2 - reach, side_px // 2 + reach)


def judged(
    pipe: Pipeline, image: NDArray[np.uint8], items: Sequence[Item], shape: str
) -> list[dict[str, Any]]:
    """Each question's IoU in every row of the table, and what of the answer lies on no data."""
    side_px = len(image)
    valid, middle = collar(side_px, shape)
    hidden = np.repeat(~valid[..., None], 3, axis=2)
    inside = np.ix_(range(*middle.indices(side_px)), range(*middle.indices(side_px)))
    sources = {
        "collar": np.ma.MaskedArray(np.where(hidden, 0, image).astype(np.uint8), hidden),
        "whole": image,
        "cut": np.ascontiguousarray(image[inside]),
    }
    rows = []
    sessions = {name: pipe.open(source) for name, source in sources.items()}
    for item in items:
        assert item.objects is not None
        truth = item.objects.window(item.target_ids, (0, 0, side_px, side_px)) & valid
        if not truth.any():
            continue
        answers = {name: session.ask(item.prompt) for name, session in sessions.items()}
        found = {
            name: np.any([np.asarray(m) for m in r.masks], axis=0)
            if r.masks
            else np.zeros(sources[name].shape[:2], bool)
            for name, r in answers.items()
        }
        row: dict[str, Any] = {
            "shape": shape,
            "prompt": item.prompt,
            "text": answers["collar"].text,
            "collar": _iou(found["collar"], truth),
            "whole": _iou(found["whole"] & valid, truth),
            "mask_px": int(found["collar"].sum()),
            "nodata_px": int((found["collar"] & ~valid).sum()),
            "crops_on_nodata": _on_nodata(answers["collar"].crop_boxes, valid),
        }
        if truth[inside].any():
            row["collar, there"] = _iou(found["collar"][inside], truth[inside])
            row["cut"] = _iou(found["cut"], truth[inside])
        rows.append(row)
    for session in sessions.values():
        session.close()
    return rows


def _iou(a: Bools, b: Bools) -> float:
    return float((a & b).sum() / (a | b).sum())


def _on_nodata(boxes: NDArray[np.float32], valid: Bools) -> float:
    """The share of the crops' area in the image that holds no data."""
    parts = [
        valid[max(0, y0) : max(0, y1), max(0, x0) : max(0, x1)]
        for x0, y0, x1, y1 in np.rint(boxes).astype(int).tolist()
    ]
    area = sum(part.size for part in parts)
    return sum(int((~part).sum()) for part in parts) / area if area else 0.0


def as_markdown(report: dict[str, Any]) -> str:
    """The table."""
    table = []
    for shape, name in (("frame", "upright square"), ("corner", "square on its corner")):
        rows = [row for row in report["rows"] if row["shape"] == shape]
        means = [np.mean([r[k] for r in rows if k in r]) for k in ROWS]
        nodata = sum(r["nodata_px"] for r in rows) / max(1, sum(r["mask_px"] for r in rows))
        crops = np.mean([r["crops_on_nodata"] for r in rows])
        figures = [f"{mean:.3f}" for mean in means]
        table.append((name, len(rows), *figures, f"{nodata:.0%}", f"{crops:.0%}"))
    return page_of(
        "What a nodata collar costs an answer",
        report,
        described(report["machine"]),
        "mIoU against the targets' pixels that hold data; half of each image does.",
        table_of(
            f"data | questions | {' | '.join(ROWS)} | mask px on nodata | crops on nodata", table
        ),
    )


if __name__ == "__main__":
    main()
