"""Sets of images, prompts and answers, and what a bundle's answers are worth on them.

from geomag_edge.calibration import compare, evaluate, open_dataset

report = evaluate(pipe, open_dataset("scenes:1:60"))
report["mIoU"].value, report["mIoU", "size: <16 px"].low
compare(report, other)["mIoU"].high

docs/DATA.md describes the sets and the metrics. Nothing here needs torch.
"""

from geomag_edge.calibration.evaluation.compare import Comparison, Difference, compare
from geomag_edge.calibration.evaluation.evaluate import evaluate
from geomag_edge.calibration.evaluation.report import Estimate, Report, read_report, write_report
from geomag_edge.calibration.sets.datasets import open_dataset
from geomag_edge.calibration.sets.items import Dataset, Item, Picture

__all__ = [
    "Comparison",
    "Dataset",
    "Difference",
    "Estimate",
    "Item",
    "Picture",
    "Report",
    "compare",
    "evaluate",
    "open_dataset",
    "read_report",
    "write_report",
]
