#!/usr/bin/env bash
# Installs geomag-edge on a Jetson into .venv, next to JetPack's own TensorRT. Not run yet on a board.
#   install.sh 6|7        JetPack's major version; run it in the repository's root
set -euo pipefail
case "${1:-}" in
6) cuda=12 nvrtc=nvidia-cuda-nvrtc-cu12 ;;   # CUDA 12.6
7) cuda=13 nvrtc=nvidia-cuda-nvrtc ;;        # CUDA 13
*) echo "say which JetPack: install.sh 6 or install.sh 7" >&2; exit 2 ;;
esac
[ -f pyproject.toml ] || { echo "run this in the repository's root" >&2; exit 2; }

sudo apt-get update
sudo apt-get install -y python3-venv g++ tensorrt python3-libnvinfer
python3 -m venv --system-site-packages .venv   # the TensorRT bindings are JetPack's
. .venv/bin/activate
# No "[cuda]": onnxruntime-gpu has no wheel for aarch64. onnx is for the fit check.
pip install . onnx "cuda-core>=1.0" "cuda-bindings==$cuda.*" "$nvrtc"
geomag-edge targets | tail -1
