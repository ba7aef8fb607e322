"""The runtime on a machine with no training stack: a clean interpreter where it cannot import."""

import json
import subprocess
import sys
import textwrap

import numpy as np
import pytest

BLOCKED = ("torch", "transformers", "onnx", "onnxscript", "safetensors", "huggingface_hub")

BLOCK = f"""
import sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {BLOCKED!r}:
            raise ImportError(f"{{name}} is blocked by the test")

sys.meta_path.insert(0, Blocked())
"""


def run_python(code, *arguments):
    """Runs code in a fresh interpreter; its last line of stdout is JSON."""
    command = [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_the_block_works():
    code = (
        BLOCK
        + "\ntry:\n    import torch\nexcept ImportError as e:\n    print('\"' + str(e) + '\"')"
    )
    assert run_python(code) == "torch is blocked by the test"


def test_a_full_run_needs_no_training_stack(bundle, picture, tmp_path):
    np.save(tmp_path / "scene.npy", picture)
    code = BLOCK + textwrap.dedent(
        """
        import json
        import numpy as np
        from geomag_edge import Pipeline
        from geomag_edge.graphs import TOLERANCES
        from geomag_edge.runtime.engines.reference import FILES, load_reference
        from geomag_edge.runtime.proof.verify import verify

        image = np.load(sys.argv[2])
        with Pipeline.load(sys.argv[1]) as pipe:
            answer = pipe(image, "segment the ships", "pixel", 4, answer_prefix="[SEG]")
            files = [pipe.bundle.file(f"reference/{name}") for name in FILES]
            report = verify(pipe.chain, load_reference(*files), TOLERANCES["fp32"])
        print(json.dumps({
            "ids": answer.token_ids, "masks": len(answer.masks), "ok": report.ok,
            "loaded": sorted({m.partition(".")[0] for m in sys.modules}),
        }))
        """
    )
    found = run_python(code, bundle, tmp_path / "scene.npy")
    assert not {*BLOCKED} & {*found["loaded"]}
    assert found["ok"]
    assert found["masks"] >= 1

    from geomag_edge import Pipeline

    with Pipeline.load(bundle) as pipe:
        here = pipe(picture, "segment the ships", "pixel", 4, answer_prefix="[SEG]")
    assert found["ids"] == here.token_ids


@pytest.mark.parametrize(
    "module",
    [
        "geomag_edge.runtime.chain.pipeline", "geomag_edge.runtime.proof.verify",
        "geomag_edge.runtime.answers.masks",
        "geomag_edge.runtime.images.scene", "geomag_edge.runtime.engines.torch_engine",
        "geomag_edge.cli",
    ],
)  # fmt: skip
def test_these_modules_import_without_a_training_stack(module):
    loaded = run_python(BLOCK + f"import json, {module}\nprint(json.dumps(sorted(sys.modules)))")
    assert module in loaded


def test_the_torch_engine_without_torch_says_what_to_install(bundle):
    code = BLOCK + textwrap.dedent(
        """
        import json
        from geomag_edge import Pipeline
        from geomag_edge.errors import MissingExtraError
        try:
            Pipeline.load(sys.argv[1], engine="torch")
        except MissingExtraError as e:
            print(json.dumps(str(e)))
        """
    )
    assert 'pip install "geomag-edge[export]"' in run_python(code, bundle)


HEAVY = ("torch", "transformers", "onnx", "onnxruntime", "rasterio", "numpy", "PIL", "tokenizers")


def test_importing_the_package_costs_nothing():
    code = "import sys, json, geomag_edge\nprint(json.dumps(sorted(sys.modules)))"
    loaded = {name.partition(".")[0] for name in run_python(code)}
    assert "geomag_edge" in loaded
    assert not {*HEAVY} & loaded
