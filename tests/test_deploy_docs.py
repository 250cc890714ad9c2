"""The pages for whoever runs a service: their commands exist, and those that can run here do."""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import threading
import urllib.request
from pathlib import Path
from typing import Any

import click
import pytest
import typer
import yaml

from service.cli import app
from service.settings import Settings
from tests.compose import ROOT, filled, read
from tests.runs import run_inline, small_spec
from tests.test_compose import KNOWN_ELSEWHERE

DEPLOY = (ROOT / "docs/deploy.md").read_text(encoding="utf-8")
OPERATE = (ROOT / "docs/operate.md").read_text(encoding="utf-8")
SETTINGS = {f"DECONVOY_{name.upper()}" for name in Settings.model_fields}
OF_CALLERS = {"DECONVOY_URL", "DECONVOY_TOKEN"}
OF_COMPOSE = {"DECONVOY_BIND"}


def blocks(page: str, language: str = r"\w*") -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page, re.MULTILINE | re.DOTALL)


def commands(page: str, program: str) -> list[list[str]]:
    """Their words, those inside others among them; comments and ellipses left out."""
    found = re.findall(rf"(?:^|exec api ){program} (.*)$", "\n".join(blocks(page)), re.MULTILINE)
    return [shlex.split(line, comments=True) for line in found]


def parse(command: click.Command, words: list[str]) -> None:
    """Raises click.UsageError where there is no such command or option."""
    name = "deconvoy"
    while hasattr(command, "resolve_command"):
        context = click.Context(command, info_name=name)
        found, below, words = command.resolve_command(context, list(words))
        assert below is not None, (name, words)
        name, command = found or name, below
    command.make_context(name, list(words))


@pytest.mark.parametrize("page", [DEPLOY, OPERATE], ids=["deploy", "operate"])
def test_commands_of_ours_in_the_pages_exist_with_their_options(page: str) -> None:
    whole = typer.main.get_command(app)
    listed = [words for words in commands(page, "deconvoy") if not words[0].startswith("--")]
    assert len(listed) > 2
    for words in listed:
        parse(whole, words)
    with pytest.raises((click.UsageError, SystemExit, Exception)):
        parse(whole, ["up", "--no-such-option"])


def test_token_commands_of_the_page_run(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "DECONVOY_HOME": str(tmp_path)}
    listed = [words for block in blocks(DEPLOY, "sh") for words in commands_in(block)]
    tokens = [words for words in listed if words[0] == "token"]
    assert [words[1] for words in tokens] == ["create", "list", "revoke"]
    said = [
        subprocess.run(
            [sys.executable, "-m", "service.cli", *words],
            env=environment,
            capture_output=True,
            text=True,
            timeout=120,
        )  # fmt: skip
        for words in tokens
    ]
    assert [done.returncode for done in said] == [0, 0, 0], [done.stderr for done in said]
    assert said[0].stdout.startswith("dv_") and "submit" in said[1].stdout


def commands_in(block: str) -> list[list[str]]:
    return commands(f"```sh\n{block}```", "deconvoy")


def test_the_page_s_service_for_looking_runs(tmp_path: Path) -> None:
    """`deconvoy up --ray none RUN`, on a free port."""
    run_inline(small_spec(), tmp_path / "runs/photos")
    (words,) = [
        words
        for block in blocks(DEPLOY, "sh")
        for words in commands_in(block)
        if words[:3] == ["up", "--ray", "none"]
    ]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "DECONVOY_HOME": str(tmp_path / "home")}
    process = subprocess.Popen(
        [sys.executable, "-m", "service.cli", *words, "--port", "0"],
        env=environment, cwd=tmp_path, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    ending = threading.Timer(120, process.kill)
    ending.start()
    try:
        assert process.stdout is not None
        found = re.search(r"Deconvoy is at (http://127\.0\.0\.1:\d+)", process.stdout.readline())
        assert found is not None
        token = (tmp_path / "home/token").read_text().strip()
        asked = urllib.request.Request(
            f"{found[1]}/v1/runs", headers={"Authorization": f"Bearer {token}"}
        )
        with urllib.request.urlopen(asked, timeout=30) as answer:
            assert [run["id"] for run in json.load(answer)["runs"]] == ["photos"]
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(60)
        ending.cancel()
        if process.stdout is not None:
            process.stdout.close()
    assert process.returncode in (0, 130)  # by Ctrl-C


@pytest.mark.ray
def test_commands_of_ray_in_the_page_exist_with_their_options() -> None:
    from ray.scripts.scripts import cli

    listed = commands(DEPLOY, "ray")
    assert [words[0] for words in listed] == ["start", "start"]
    for words in listed:
        parse(cli, words)


def test_services_that_the_pages_name_are_in_the_compose_file() -> None:
    services = read(filled())["services"]
    listed = [*commands(DEPLOY, "docker compose"), *commands(OPERATE, "docker compose")]
    text = [" ".join(words) for words in listed]
    assert len(text) > 5
    for line in text:
        for name in re.findall(r"(?:exec(?: -T)?|logs|rm --force|--scale) ([a-z0-9-]+)", line):
            assert name in services, line


def test_the_systemd_unit_starts_a_service_of_known_settings() -> None:
    (unit,) = blocks(DEPLOY, "ini")
    pairs = re.findall(r"^Environment='?(\w+)=(.*?)'?$", unit, re.MULTILINE)
    assert len(pairs) == 4 and {name for name, _ in pairs} <= SETTINGS
    assert json.loads(dict(pairs)["DECONVOY_DATA_ROOTS"]) == ["/srv/images"]
    (started,) = re.findall(r"^ExecStart=\S+/deconvoy (.*)$", unit, re.MULTILINE)
    parse(typer.main.get_command(app), shlex.split(started))


def test_the_kubernetes_manifest_is_of_one_piece() -> None:
    (text,) = [block for block in blocks(DEPLOY, "yaml") if "RayCluster" in block]
    cluster, deployment, service = yaml.safe_load_all(text)
    assert [each["kind"] for each in (cluster, deployment, service)] == [
        "RayCluster", "Deployment", "Service",
    ]  # fmt: skip
    containers = _containers(cluster) + _containers(deployment)
    assert len({each["image"] for each in containers}) == 1
    for each in containers:
        names = {variable["name"] for variable in each["env"]}
        assert names <= SETTINGS | KNOWN_ELSEWHERE, each["name"]
        if "command" in each:
            assert each["command"][0] == "deconvoy"
            parse(typer.main.get_command(app), each["command"][1:])
    pod = deployment["spec"]["template"]["metadata"]["labels"]
    assert service["spec"]["selector"] == pod == deployment["spec"]["selector"]["matchLabels"]


def _containers(within: Any) -> list[dict[str, Any]]:
    if isinstance(within, dict):
        own = [*within.get("containers", []), *within.get("initContainers", [])]
        return own + [
            each for value in within.values() for each in _containers(value) if each not in own
        ]
    return (
        [each for value in within for each in _containers(value)]
        if isinstance(within, list)
        else []
    )


def test_variables_that_the_pages_name_are_settings() -> None:
    named = set(re.findall(r"\bDECONVOY_[A-Z_]*[A-Z]\b", DEPLOY + OPERATE))
    assert named <= SETTINGS | OF_CALLERS | OF_COMPOSE


def test_files_that_the_pages_name_are_there() -> None:
    for page in (DEPLOY, OPERATE):
        for path in re.findall(r"\]\(((?!http)[^)#]+)\)", page):
            assert (ROOT / "docs" / path).exists(), path
