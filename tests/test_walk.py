"""The commands of docs/walk.md, typed one after the other, on fewer images."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

import deconvoy

ROOT = Path(__file__).resolve().parents[1]

LESS = {"python": ["--images", "40", "--epochs", "1"]}
"""What is added to a command so that it takes seconds."""

ONE_LAYER = (
    "analyses=[{kind: top}, {kind: projection, layers: [layer3.1.relu_1], "
    "units: {ids: [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11]}}]"
)


def commands() -> list[list[str]]:
    text = (ROOT / "docs/walk.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```(\w*)\n(.*?)```", text, re.DOTALL)
    typed_ones = [block for language, block in blocks if not language]
    return [shlex.split(line) for block in typed_ones for line in block.splitlines()]


def typed(words: list[str]) -> list[str]:
    if words[0] == "python":
        return [sys.executable, str(ROOT / words[1]), *words[2:], *LESS["python"]]
    more = {
        "run": ["--executor", "inline", "--set", ONE_LAYER],
        "extend": ["--executor", "inline"],
    }.get(words[1], [])
    return [sys.executable, "-m", "service.cli", *words[1:], *more]


@pytest.mark.timeout(1200)
def test_every_command_of_the_walk_does_what_it_says(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    told: dict[str, str] = {}
    for words in commands():
        done = subprocess.run(
            typed(words), cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, f"{shlex.join(words)}\n{done.stdout}\n{done.stderr}"
        told[" ".join(words[1:3])] = done.stdout + done.stderr
    assert "folder names" in told["run work/after.yaml"]
    assert "layer3.1.relu_1" in told["diff work/runs/before"]
    for name in ("after.png", "before.png", "hits.parquet", "report.html"):
        assert (tmp_path / "work" / name).stat().st_size > 1000, name
    before, after = (deconvoy.open(tmp_path / "work/runs" / n) for n in ("before", "after"))
    assert before.layer_names == after.layer_names
    assert deconvoy.open(tmp_path / "work/runs/more").images().num_rows == 40 + 10
