"""Embedding tables as int8 rows: exact to 1/254 of each row."""

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from geomag_edge.calibration.quantization.formats.half import to_half
from geomag_edge.calibration.quantization.tables import quantize_rows, quantize_tables
from geomag_edge.graphs import EMBED

FLOATS = st.floats(-1e4, 1e4, width=32)


@given(hnp.arrays(np.float32, st.tuples(st.integers(1, 9), st.integers(1, 9)), elements=FLOATS))
def test_a_row_is_off_by_at_most_half_a_step_of_its_own(table):
    rows, scales = quantize_rows(table)
    largest = np.abs(table).max(axis=1, keepdims=True)
    off = np.abs(rows * scales[:, None] - table)
    assert (off <= largest / 254 * (1 + 1e-4) + 1e-36).all()


def look_up(model, path, ids):
    ir.save(model, path, external_data=f"{path.name}.data")
    onnx.checker.check_model(str(path), full_check=True)
    session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return session.run(None, {"input_ids": ids})[0]


@pytest.fixture
def embed(exported):
    return exported().graph("embed")


@pytest.mark.parametrize("half", [False, True])
def test_tokens_are_found_in_either_precision(embed, tmp_path, half):
    ids = np.arange(300)[None]
    exact = look_up(ir.load(embed), tmp_path / "wide.onnx", ids)
    model = ir.load(embed)
    assert len(quantize_tables(model)) == 1
    if half:
        to_half(model, EMBED)
    got = look_up(model, tmp_path / "narrow.onnx", ids)
    assert got.dtype == (np.float16 if half else np.float32)
    limit = np.abs(exact).max(-1, keepdims=True) * (1 / 254 + (1e-3 if half else 1e-6))
    assert (np.abs(got - exact) <= limit).all()
    narrow, wide = (tmp_path / f"{n}.onnx.data" for n in ("narrow", "wide"))
    assert narrow.stat().st_size < 0.35 * wide.stat().st_size


def test_only_tables_that_nothing_but_gather_reads_are_narrowed(exported):
    model = ir.load(exported().graph("psc_select"))
    before = {v.name for v in model.graph.initializers.values() if len(v.shape) == 2}
    assert len(quantize_tables(model)) == 1
    gone = before - set(model.graph.initializers)
    assert len(gone) == 1
    assert "token_embedding" in gone.pop()


def test_a_kept_look_up_keeps_its_table(embed):
    model = ir.load(embed)
    name = next(iter(model.graph)).name
    assert quantize_tables(model, keep=[name]) == []
