"""Peers: what else would answer the same question, timed in turn with this package.

Each script compares the outputs before it times anything, and runs with whichever peers are
installed (`pip install "geomag-edge[peers]"`); a missing one costs a line, not the run.

| script | peers |
|---|---|
| `peers/query.py` | a whole query: PyTorch eager and compiled, per-graph ONNX Runtime, OpenVINO |
| `peers/decode.py` | the language model: onnxruntime-genai, optimum-onnx, Hugging Face eager |
| `peers/tiling.py` | a large scene: tiling all of it at its native resolution |
| `peers/extent.py` | a large scene: the same chain on a small one, time and memory |
| `speed/psc_crop.py` | cropping: Pillow, OpenCV, torch |
"""
