"""What a sweep may pass over: where PSC's relevance says that nothing of the prompt is there.

    python -m geomag_edge.benchmarks.studies.sweep_gates --bundle BUNDLE --scenes DIR

Every view of a sweep is looked at once, with PSC's relevance of it and of the coarser views that
decide (`runtime/chain/sweep.py`). Then each pair of thresholds is judged by what it would have
kept: the share of views, the share of the targets' pixels that lie in them, and the mIoU of the
masks. The questions are those of the pixel level with a target, each set of targets asked for once,
of scenes that no other figure is taken from; those answered without a [SEG] are left out.

The last line of stdout is one JSON.
"""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from geomag_edge.benchmarks.arguments import REQUIRED, parser_of
from geomag_edge.benchmarks.machine import described, machine
from geomag_edge.benchmarks.peers.big_scenes import make_scene, open_scene
from geomag_edge.benchmarks.peers.tiles import NEW_TOKENS
from geomag_edge.benchmarks.peers.tiling import PER_LEVEL, one_wording
from geomag_edge.benchmarks.publish import page_of, publish, table_of
from geomag_edge.calibration.evaluation.metrics import mask_iou, mask_overlap
from geomag_edge.calibration.sets.items import Item
from geomag_edge.manifest import Bundle
from geomag_edge.runtime.answers.masks import MaskMaps, joined_masks
from geomag_edge.runtime.chain.chain import Stopwatch
from geomag_edge.runtime.chain.pipeline import Pipeline
from geomag_edge.runtime.chain.scene_session import SceneSession
from geomag_edge.runtime.chain.sweep import coarse_boxes, sweep_boxes, worth_a_look
from geomag_edge.runtime.engines.opening import open_engine
from geomag_edge.runtime.proof.recording import RecordingEngine

GATES = ((-1, -1), (0.1, -1), (-1, 0.5), (0.1, 0.5), (0.3, 0.5), (0.5, 0.5), (0.1, 0.8))
"""Pairs of `MAYBE` and `LIKELY`; below 0 for none."""


def main() -> None:
    """Parses, measures, writes the result, prints the table and one JSON line."""
    parser = parser_of(__doc__, bundle=REQUIRED, name="nano", scenes=REQUIRED, threads=1)
    parser.add_argument("--seeds", default="31,32,33,34,35,36")
    parser.add_argument("--size", type=int, default=4096, help="side of the scenes, px")
    parser.add_argument("--sides", default="256,512", help="sides of a sweep's views, px")
    args = parser.parse_args()
    sides = [int(side) for side in args.sides.split(",")]
    rows: list[dict[str, Any]] = []
    bundle = Bundle.open(args.bundle)
    engine = RecordingEngine(open_engine("ort-cpu", bundle, "fp32", args.threads), llm_calls=0)
    with Pipeline.load(bundle, engine) as pipe:
        for seed in (int(s) for s in args.seeds.split(",")):
            folder = make_scene(args.scenes / f"{seed}_{args.size}", seed, args.size, PER_LEVEL)
            picture = open_scene(folder, keep_labels=True)
            items = [item for item in one_wording(picture.items) if not item.absent]
            with pipe.open(str(picture.image)) as session:
                for item in tqdm(items, f"scene {seed}", disable=None):
                    queries, looked = asked(session, engine, item.prompt)
                    if looked is None:
                        print(f"no [SEG]: {item.prompt}", file=sys.stderr)
                        continue
                    rows += [
                        {"seed": seed, "prompt": item.prompt, "side_px": side} | row
                        for side in sides
                        for row in judged(session, item, side, queries, looked)
                    ]
        checkpoint = str(pipe.bundle.manifest.checkpoint.get("sha256", ""))
    report = {
        "command": f"python -m geomag_edge.benchmarks.studies.sweep_gates --bundle {args.name} "
        f"--scenes DIR --seeds {args.seeds} --size {args.size} --sides {args.sides} "
        f"--threads {args.threads}",
        "machine": machine(args.threads),
        "checkpoint": checkpoint,
        "rows": rows,
    }
    publish(report, as_markdown(report), args.results, f"sweep_gates_{args.name}")


def judged(
    session: SceneSession, item: Item, side_px: int, queries: Any, looked: MaskMaps
) -> list[dict[str, Any]]:
    """What each pair of thresholds would have kept of one answer's sweep, and its mask's IoU."""
    chain, scene = session.chain, session.scene
    prompt_ids, _ = chain.coder.psc_ids(item.prompt)
    size = scene.height, scene.width

    def glances(boxes: NDArray[np.float32], masks: bool) -> tuple[NDArray[np.float32], Any]:
        relevance, maps = [], []
        for box in boxes:
            view = chain.encode(scene, box[None], Stopwatch(chain.values))
            relevance.append(chain.select(view, 0, prompt_ids, scene)["relevance"])
            if masks:
                maps.append(chain.mask_maps(view, queries))
        return np.stack(relevance), maps

    boxes, coarse = sweep_boxes(*size, side_px), coarse_boxes(*size, side_px)
    hints, _ = glances(coarse, False)
    relevance, maps = glances(boxes, True)
    targets = np.array([_target_px(item, box, size) for box in boxes])
    rows = []
    for maybe, likely in GATES:
        worth = worth_a_look(boxes, coarse, (hints > maybe).astype(np.float32))
        kept = worth & (relevance.max(axis=(1, 2)) > likely)
        found = [looked, *(one for one, is_kept in zip(maps, kept, strict=True) if is_kept)]
        masks = joined_masks(found, size)
        rows.append(
            {
                "maybe": maybe,
                "likely": likely,
                "views": float(worth.mean()),
                "target": float(targets[kept].sum() / targets.sum()),
                "iou": mask_iou(mask_overlap(masks, item), item, len(masks)),
            }
        )
    return rows


def asked(
    session: SceneSession, engine: RecordingEngine, prompt: str
) -> tuple[Any, MaskMaps | None]:
    """The answer's mask queries and what it found by itself; None where it has no mask."""
    engine.calls.clear()
    result = session.ask(prompt, "pixel", NEW_TOKENS)
    calls = [call for call in engine.calls if call.graph == "mask_head"]
    engine.calls.clear()
    if not calls:
        return None, None
    boxes = np.concatenate([result.view_box[None], result.crop_boxes])
    queries, found = calls[0].inputs["queries"], calls[0].outputs
    return queries, MaskMaps(boxes, found["mask_logits"], found["quality"])


def _target_px(item: Item, box: NDArray[np.float32], size: tuple[int, int]) -> int:
    assert item.objects is not None
    x0, y0, x1, y1 = (int(v) for v in box)
    rect = max(y0, 0), max(x0, 0), min(y1, size[0]), min(x1, size[1])
    return int(np.count_nonzero(item.objects.window(item.target_ids, rect)))


def as_markdown(report: dict[str, Any]) -> str:
    """The committed table."""
    rows = report["rows"]
    questions = len({(row["seed"], row["prompt"]) for row in rows})
    said = (
        f"{described(report['machine'])}. Means over {questions} questions. A view is looked at "
        "where one four times as large has a patch above the first threshold, and its mask counts "
        "where it has a patch above the second itself."
    )
    table = []
    for side in sorted({row["side_px"] for row in rows}):
        for maybe, likely in GATES:
            case = side, maybe, likely
            found = [r for r in rows if (r["side_px"], r["maybe"], r["likely"]) == case]
            views, target, iou = (
                float(np.mean([row[key] for row in found])) for key in ("views", "target", "iou")
            )
            shown = ["-" if gate < 0 else f"{gate:g}" for gate in (maybe, likely)]
            table.append((side, *shown, f"{views:.0%}", f"{target:.1%}", f"{iou:.3f}"))
    heads = "views of, px | first | second | views looked at | of the targets' pixels | mIoU"
    return page_of("A sweep: what it may pass over", report, said, table_of(heads, table))


if __name__ == "__main__":
    main()
