"""The scripts for a Jetson, run against stand-ins for its programs; and what its pages promise."""

import os
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
JETSON = ROOT / "docs" / "jetson"
SCRIPTS = sorted(JETSON.glob("*.sh"))

MODES = {
    "orin nano, 6.2": ["0 15W", "1 25W", "2 MAXN_SUPER", "3 7W"],
    "agx orin": ["0 MAXN", "1 MODE_15W", "2 MODE_30W", "3 MODE_50W"],
    "orin nano, 6.0": ["0 15W", "1 7W"],
}
LARGEST = {"orin nano, 6.2": "2", "agx orin": "0", "orin nano, 6.0": "0"}

NVPMODEL = """#!/bin/bash
echo "nvpmodel $*" >> "$FAKE/calls"
if [ "$1" = -q ]; then echo "NV Power Mode: $(cat "$FAKE/mode")"; echo 9; exit; fi
name=$(sed -n "s/.*ID=$2 NAME=\\([^ ]*\\).*/\\1/p" "$FAKE/nvpmodel.conf")
if [ -e "$FAKE/asks" ]; then
    echo "NVPM WARN: Reboot required for changing to this power mode: DO YOU WANT TO REBOOT NOW?"
    read -r answer || exit 1
    echo "$answer" > "$FAKE/answered"
fi
echo "$name" > "$FAKE/mode"
"""
FAKES = {
    "nvpmodel": NVPMODEL,
    "jetson_clocks": '#!/bin/bash\necho jetson_clocks >> "$FAKE/calls"\n'
    '[ ! -e "$FAKE/no_clocks" ]\n',
    "swapon": '#!/bin/bash\necho "swapon $*" >> "$FAKE/calls"\n'
    'case "$1" in --show*) cat "$FAKE/swaps" 2>/dev/null; exit 0;; esac\n'
    'echo "$1" >> "$FAKE/swaps"\n',
    "mkswap": '#!/bin/bash\necho "mkswap $*" >> "$FAKE/calls"\n',
    "fallocate": '#!/bin/bash\necho "fallocate $*" >> "$FAKE/calls"\n'
    '[ ! -e "$FAKE/full" ] && touch "$3"\n',
    "sudo": '#!/bin/bash\n[ "$1" = -v ] || exec "$@"\n',
    "id": "#!/bin/bash\necho 1000\n",
    "free": "#!/bin/bash\n",
}  # fmt: skip


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda p: p.name)
def test_scripts_are_bash(script):
    subprocess.run(["bash", "-n", str(script)], check=True)
    assert script.read_text().startswith("#!/usr/bin/env bash\n")


@pytest.fixture
def board(tmp_path):
    """A board's programs, as scripts that write down what they were asked; () -> a run."""
    programs = tmp_path / "bin"
    programs.mkdir()
    for name, text in FAKES.items():
        (programs / name).write_text(text)
        (programs / name).chmod(0o755)
    set_modes(tmp_path, "orin nano, 6.2")
    (tmp_path / "mode").write_text("15W\n")
    (tmp_path / "calls").write_text("")
    text = (JETSON / "prepare.sh").read_text()
    text = text.replace("conf=/etc/nvpmodel.conf", f"conf={tmp_path}/nvpmodel.conf")
    text = text.replace("swapfile=/swapfile", f"swapfile={tmp_path}/swapfile")
    (tmp_path / "prepare.sh").write_text(text)

    def run(*arguments):
        return subprocess.run(
            ["bash", str(tmp_path / "prepare.sh"), *arguments],
            env={"PATH": f"{programs}:{os.environ['PATH']}", "FAKE": str(tmp_path)},
            capture_output=True, text=True, timeout=60,
        )  # fmt: skip

    return run


def set_modes(folder, kind):
    lines = [f"< POWER_MODEL ID={m.split()[0]} NAME={m.split()[1]} >\nX 1\n" for m in MODES[kind]]
    head = "< PARAM TYPE=FILE NAME=X >\n"
    (folder / "nvpmodel.conf").write_text(head + "\n".join(lines) + "< PM_CONFIG DEFAULT=1 >\n")


def calls(tmp_path):
    return (tmp_path / "calls").read_text().splitlines()


@pytest.mark.parametrize("kind", MODES)
def test_the_largest_mode_is_taken_by_its_name(kind, board, tmp_path):
    set_modes(tmp_path, kind)
    (tmp_path / "mode").write_text("7W\n")
    done = board()
    assert done.returncode == 0, done.stderr
    assert [c for c in calls(tmp_path) if "-m" in c] == [f"nvpmodel -m {LARGEST[kind]}"]
    assert "jetson_clocks" in calls(tmp_path)


def test_swap_comes_first_and_is_made_once(board, tmp_path):
    assert board("8").returncode == 0
    done = [c.split()[0] for c in calls(tmp_path) if "-q" not in c and "--show" not in c]
    assert done == ["fallocate", "mkswap", "swapon", "nvpmodel", "jetson_clocks"]
    assert f"fallocate -l 8G {tmp_path}/swapfile" in calls(tmp_path)
    (tmp_path / "calls").write_text("")
    again = board("8")
    assert again.returncode == 0
    assert "is on already" in again.stdout
    assert "MAXN_SUPER already" in again.stdout
    (tmp_path / "calls").write_text("")
    (tmp_path / "swaps").unlink()  # a reboot
    assert board("8").returncode == 0
    assert f"swapon {tmp_path}/swapfile" in calls(tmp_path)
    assert not [c for c in calls(tmp_path) if c.startswith(("fallocate", "mkswap"))]


def test_a_mode_that_needs_a_reboot_asks_nothing_and_says_what_to_do(board, tmp_path):
    (tmp_path / "asks").touch()
    done = board("8")
    assert done.returncode == 1
    assert not (tmp_path / "answered").exists()
    assert "sudo nvpmodel -m 2" in done.stderr
    assert "after the reboot run this again" in done.stderr
    assert "jetson_clocks" in calls(tmp_path)
    assert f"swapon {tmp_path}/swapfile" in calls(tmp_path)


def test_what_fails_does_not_stop_the_rest(board, tmp_path):
    (tmp_path / "full").touch()
    (tmp_path / "no_clocks").touch()
    done = board("8")
    assert done.returncode == 1
    assert "NOT DONE: swap" in done.stderr
    assert "NOT DONE: clocks" in done.stderr
    assert "power mode: MAXN_SUPER" in done.stdout
    assert not (tmp_path / "swapfile").exists()
    (tmp_path / "nvpmodel.conf").unlink()
    assert "NOT DONE: power mode" in board().stderr


def test_bad_usage_changes_nothing(board, tmp_path):
    assert board("much").returncode == 2
    assert calls(tmp_path) == []


@pytest.mark.parametrize(
    ("jetpack", "release", "packages"),
    [
        ("6", "# R36 (release), REVISION: 4.3", ["cuda-bindings==12.*", "nvidia-cuda-nvrtc-cu12"]),
        ("7", "# R38 (release), REVISION: 2.0", ["cuda-bindings==13.*", "nvidia-cuda-nvrtc"]),
        ("7", "# R39 (release), REVISION: 2.0", ["cuda-bindings==13.*", "nvidia-cuda-nvrtc"]),
        ("6", "", ["cuda-bindings==12.*", "nvidia-cuda-nvrtc-cu12"]),
        ("6", "# R38 (release), REVISION: 2.0", None),
        ("5", "", None),
    ],
)
def test_install_takes_the_wheels_of_the_jetpack(jetpack, release, packages, tmp_path):
    programs = tmp_path / "bin"
    programs.mkdir()
    write = 'echo "$(basename "$0") $*" >> "$FAKE/calls"\n'
    python = write + (
        'mkdir -p .venv/bin\nprintf "export PATH=%s/bin:$PATH\\n" "$FAKE" > .venv/bin/activate\n'
        'env | grep ^PATH= > "$FAKE/path"\n'
    )
    for name in ("apt-get", "pip", "geomag-edge", "sudo"):
        body = 'exec "$@"\n' if name == "sudo" else write
        (programs / name).write_text(f"#!/bin/bash\n{body}")
    (programs / "python3").write_text(f"#!/bin/bash\n{python}")
    for path in programs.iterdir():
        path.chmod(0o755)
    (tmp_path / "release").write_text(release)
    (tmp_path / "calls").write_text("")
    (tmp_path / "pyproject.toml").write_text("")
    text = (JETSON / "install.sh").read_text()
    text = text.replace("release=/etc/nv_tegra_release", f"release={tmp_path}/release")
    (tmp_path / "install.sh").write_text(text)
    done = subprocess.run(
        ["bash", "install.sh", jetpack], cwd=tmp_path, capture_output=True, text=True, timeout=60,
        env={"PATH": f"{programs}:{os.environ['PATH']}", "FAKE": str(tmp_path)},
    )  # fmt: skip
    if packages is None:
        assert done.returncode == 2
        assert len(done.stderr.strip().splitlines()) == 1
        assert calls(tmp_path) == []
        return
    assert done.returncode == 0, done.stderr
    [line] = [c for c in calls(tmp_path) if c.startswith("pip ")]
    assert line.split()[-2:] == packages
    assert "onnxruntime-gpu" not in line
    assert "PATH=/usr/local/cuda/bin:" in (tmp_path / "path").read_text()


def test_the_dockerfile_names_its_target_and_its_lines_go_on():
    text = (JETSON / "Dockerfile").read_text()
    assert "--target jetpack6" in text
    ordered = re.findall(r"^(FROM|ENV|RUN|COPY|ENTRYPOINT)\b", text, re.M)
    assert ordered == ["FROM", "ENV", "RUN", "COPY", "RUN", "ENTRYPOINT"]
    for block in re.split(r"^(?=[A-Z]+ )", text, flags=re.M):
        lines = [x for x in block.strip().splitlines() if not x.startswith("#")]
        assert all(line.endswith("\\") for line in lines[:-1])
