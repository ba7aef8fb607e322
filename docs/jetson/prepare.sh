#!/usr/bin/env bash
# Readies a Jetson for building engines and for measuring: swap, the largest power mode, clocks.
# Not run yet on a board.
#   prepare.sh [GB of swap]
# Asks nothing but, at its start, for sudo's password. A part that cannot be done is said and does
# not stop the next one; exit code 1 then. May be run again, and must be after a reboot: swap and
# clocks do not outlive one.
set -uo pipefail

conf=/etc/nvpmodel.conf
swapfile=/swapfile
swap_gb=${1:-0}
failed=0

miss() { echo "NOT DONE: $*" >&2; failed=1; }
mode() { nvpmodel -q 2>/dev/null | sed -n 's/^NV Power Mode: *//p' | head -n 1; }

[[ $swap_gb =~ ^[0-9]+$ ]] || { echo "how many GB of swap? prepare.sh 8" >&2; exit 2; }
command -v nvpmodel >/dev/null || { echo "this is no Jetson: nvpmodel is missing" >&2; exit 2; }
sudo=
if [ "$(id -u)" -ne 0 ]; then
    sudo -v || { echo "this needs sudo" >&2; exit 2; }
    sudo=sudo
fi

# Swap first: a build needs it whatever becomes of the power mode.
add_swap() {
    if swapon --show=NAME --noheadings | grep -qx "$swapfile"; then
        echo "swap: $swapfile is on already"
        return 0
    fi
    if [ ! -e "$swapfile" ]; then
        $sudo fallocate -l "${swap_gb}G" "$swapfile" && $sudo chmod 600 "$swapfile" \
            && $sudo mkswap "$swapfile" >/dev/null || { $sudo rm -f "$swapfile"; return 1; }
    fi
    $sudo swapon "$swapfile" && echo "swap: $swapfile is on"
}
if [ "$swap_gb" -gt 0 ]; then
    add_swap || miss "swap: is there room for ${swap_gb} GB (df -h /)?"
fi

# "ID NAME" of the largest mode: one whose name begins with MAXN, or else the one of most watts. The
# numbers differ from board to board: 0 is MAXN on an AGX Orin and 15 W on an Orin Nano.
largest=$(sed -n 's/^< *POWER_MODEL  *ID=\([0-9]*\)  *NAME=\([^ >]*\).*/\1 \2/p' "$conf" 2>/dev/null |
    awk '{ watts = $2; gsub(/[^0-9]/, "", watts); rank = $2 ~ /^MAXN/ ? 1e6 : watts + 0
           if (NR == 1 || rank > most) { most = rank; best = $0 } } END { print best }')
read -r id name <<<"$largest"
if [ -z "$id" ]; then
    miss "power mode: $conf names none; see what 'nvpmodel -q --verbose' says"
elif [ "$(mode)" = "$name" ]; then
    echo "power mode: $name already"
else
    # Where a mode needs a reboot nvpmodel asks for it: without an answer it changes nothing.
    $sudo nvpmodel -m "$id" </dev/null
    if [ "$(mode)" = "$name" ]; then
        echo "power mode: $name"
    else
        miss "power mode: still $(mode). It takes a reboot: run 'sudo nvpmodel -m $id', answer" \
            "YES, and after the reboot run this again"
    fi
fi

# The clocks of the mode at their maximum, so that measurements repeat.
if command -v jetson_clocks >/dev/null && $sudo jetson_clocks; then
    echo "clocks: at their maximum until the next reboot"
else
    miss "clocks: jetson_clocks failed or is missing"
fi
free -h
exit "$failed"
