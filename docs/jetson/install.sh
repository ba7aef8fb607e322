#!/usr/bin/env bash
# Installs geomag-edge on a Jetson into .venv, next to JetPack's own TensorRT. Not run yet on a board.
#   install.sh 6|7        JetPack's major version; run it in the repository's root
set -euo pipefail

release=/etc/nv_tegra_release
case "${1:-}" in
6) l4t=R36 cuda=12 nvrtc=nvidia-cuda-nvrtc-cu12 ;;    # CUDA 12.6, Python 3.10
7) l4t="R3[89]" cuda=13 nvrtc=nvidia-cuda-nvrtc ;;    # CUDA 13, Python 3.12
*) echo "say which JetPack: install.sh 6 or install.sh 7" >&2; exit 2 ;;
esac
[ -f pyproject.toml ] || { echo "run this in the repository's root" >&2; exit 2; }
if [ -s "$release" ] && ! grep -q "$l4t" "$release"; then
    echo "this board is not on JetPack $1: $(head -n 1 "$release")" >&2
    exit 2
fi

sudo=
[ "$(id -u)" -eq 0 ] || sudo=sudo
$sudo apt-get update
$sudo apt-get install -y python3-venv g++ tensorrt python3-libnvinfer
# JetPack does not put its CUDA toolkit on PATH. With nvcc the crop kernel is compiled now, without it
# by NVRTC at first use.
export PATH=/usr/local/cuda/bin:$PATH
command -v nvcc >/dev/null || echo "no nvcc here (apt install nvidia-jetpack brings it): going on"
python3 -m venv --system-site-packages .venv   # the TensorRT bindings are JetPack's
. .venv/bin/activate
# No "[cuda]": onnxruntime-gpu has no wheel for JetPack 6 (Python 3.10 on aarch64), and the one that
# JetPack 7 could take has no kernels for its GPUs (README.md beside this). onnx is for the fit check.
pip install . onnx "cuda-core>=1.0" "cuda-bindings==$cuda.*" "$nvrtc"
geomag-edge targets | tail -n 1
