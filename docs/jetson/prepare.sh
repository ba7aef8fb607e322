#!/usr/bin/env bash
# Readies a Jetson for building engines and for measuring. Not run yet on a board.
#   prepare.sh [GB of swap]
set -euo pipefail
swap_gb=${1:-0}

command -v nvpmodel >/dev/null || { echo "this is no Jetson: nvpmodel is missing" >&2; exit 1; }
sudo nvpmodel -m 0            # the largest power mode
sudo jetson_clocks            # clocks at their maximum, so that measurements repeat
if [ "$swap_gb" -gt 0 ] && [ ! -f /swapfile ]; then
    sudo fallocate -l "${swap_gb}G" /swapfile
    sudo chmod 600 /swapfile
    sudo mkswap /swapfile
    sudo swapon /swapfile
fi
nvpmodel -q
free -h
