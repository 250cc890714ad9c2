"""`docker-compose.yml`, `Dockerfile` and `.env.example`: well-formed, closed, and of one piece."""

import importlib.util
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from deconvoy.errors import RequestError
from service.settings import Settings, read_settings
from tests.compose import COMPOSE, EXAMPLE, ROOT, example, filled, read

DOCKERFILE = (ROOT / "Dockerfile").read_text(encoding="utf-8")
OURS = ("ray-head", "ray-worker", "ray-worker-gpu", "setup", "api")
SECRETS = ("RAY_AUTH_TOKEN", "POSTGRES_PASSWORD", "S3_ACCESS_KEY", "S3_SECRET_KEY")

KNOWN_ELSEWHERE = {
    *("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_USAGE_STATS_ENABLED"),
    "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S",
    *("AWS_ENDPOINT_URL", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_REGION"),
    *("AWS_ALLOW_HTTP", "TORCH_HOME"),
    *("POSTGRES_USER", "POSTGRES_DB", "POSTGRES_PASSWORD", "S3_BUCKET"),
}
"""Variables of Ray, obstore, torch, PostgreSQL and SeaweedFS."""


@pytest.fixture
def services() -> dict[str, Any]:
    found: dict[str, Any] = read(filled())["services"]
    return found


def test_it_is_as_the_compose_specification_has_it() -> None:
    carrier = importlib.util.find_spec("check_jsonschema")
    if carrier is None or carrier.origin is None:
        pytest.skip("check-jsonschema, which carries the schema, is not installed")
    place = Path(carrier.origin).parent / "builtin_schemas/vendor/compose-spec.json"
    schema = json.loads(place.read_text(encoding="utf-8"))
    # Merge keys are resolved; variables stand where the file has them.
    document = yaml.safe_load(COMPOSE.read_text(encoding="utf-8"))
    validator = jsonschema.validators.validator_for(schema)(schema)
    assert [error.message for error in validator.iter_errors(document)] == []
    document["services"]["api"]["helthcheck"] = {}
    assert not validator.is_valid(document)


def test_docker_compose_reads_it(tmp_path: Path) -> None:
    if shutil.which("docker") is None:
        pytest.skip("no docker here")
    there = subprocess.run(["docker", "compose", "version"], capture_output=True, timeout=60)
    if there.returncode:
        pytest.skip("docker has no compose plugin here")
    secrets = tmp_path / ".env"
    secrets.write_text("".join(f"{name}={value}\n" for name, value in filled().items()))
    command = ["docker", "compose", "--env-file", str(secrets), "--file", str(COMPOSE)]
    done = subprocess.run([*command, "config", "-q"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


def test_one_port_is_published_and_on_loopback_unless_told(services: dict[str, Any]) -> None:
    published = {name: service["ports"] for name, service in services.items() if "ports" in service}
    assert published == {"api": ["127.0.0.1:8000:8000"]}
    assert not any("network_mode" in service for service in services.values())


def test_only_the_api_is_on_a_network_that_leads_out(services: dict[str, Any]) -> None:
    assert read(filled())["networks"] == {"inside": {"internal": True}, "outside": None}
    for name, service in services.items():
        assert service["networks"] == (["inside", "outside"] if name == "api" else ["inside"]), name


def test_every_service_that_stays_has_a_health_check_and_starts_again(
    services: dict[str, Any],
) -> None:
    for name, service in services.items():
        stays = name != "setup"
        assert ("healthcheck" in service) == stays, name
        assert service["restart"] == ("unless-stopped" if stays else "on-failure"), name


def test_services_wait_for_what_they_need(services: dict[str, Any]) -> None:
    needs = {
        name: {other: how["condition"] for other, how in service.get("depends_on", {}).items()}
        for name, service in services.items()
    }
    healthy = "service_healthy"
    assert needs["api"] == {
        "setup": "service_completed_successfully", "s3": healthy, "ray-head": healthy,
    }  # fmt: skip
    assert needs["setup"] == {"postgres": healthy}
    assert needs["ray-worker"] == needs["ray-worker-gpu"] == {"ray-head": healthy}
    for wanted in needs.values():
        assert not any("profiles" in services[other] for other in wanted)


def test_ours_are_one_image_without_privileges(services: dict[str, Any]) -> None:
    assert {services[name]["image"] for name in OURS} == {"deconvoy:local"}
    for name in OURS:
        assert services[name]["cap_drop"] == ["ALL"], name
        assert "user" not in services[name]  # the image's own, who is not root
    assert re.search(r"^USER (?!root)\w+$", DOCKERFILE, re.MULTILINE)
    others = [service["image"] for name, service in services.items() if name not in OURS]
    assert all(re.search(r":\d[\w.-]*$", image) for image in others), "versions are pinned"


def test_every_variable_is_known_to_somebody(services: dict[str, Any]) -> None:
    settings = {f"DECONVOY_{name.upper()}" for name in Settings.model_fields}
    for name, service in services.items():
        assert set(service.get("environment", {})) <= settings | KNOWN_ELSEWHERE, name


def test_ray_asks_for_one_token_everywhere(services: dict[str, Any]) -> None:
    for name in ("ray-head", "ray-worker", "ray-worker-gpu", "api"):
        environment = services[name]["environment"]
        assert environment["RAY_AUTH_MODE"] == "token", name
        assert environment["RAY_AUTH_TOKEN"] == filled()["RAY_AUTH_TOKEN"], name
        assert environment["RAY_USAGE_STATS_ENABLED"] == "0", name
        # Workers could not join, and the head would listen on its loopback address alone.
        assert "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER" not in environment
    assert "RAY_AUTH_TOKEN" not in services["setup"]["environment"]


def test_whoever_reads_and_writes_runs_has_the_key_of_the_store(services: dict[str, Any]) -> None:
    key = {
        "AWS_ACCESS_KEY_ID": filled()["S3_ACCESS_KEY"],
        "AWS_SECRET_ACCESS_KEY": filled()["S3_SECRET_KEY"],
    }
    having = {name for name, each in services.items() if key.items() <= each["environment"].items()}
    assert having == {"s3", "ray-head", "ray-worker", "ray-worker-gpu", "api"}


def test_shared_memory_is_larger_than_the_object_store_in_it() -> None:
    for variables in (filled(), {name: filled()[name] for name in SECRETS}):
        services = read(variables)["services"]
        for name in ("ray-head", "ray-worker", "ray-worker-gpu"):
            (store,) = re.findall(r"--object-store-memory=(\d+)", services[name]["command"])
            assert services[name]["shm_size"].endswith("m")
            assert int(services[name]["shm_size"][:-1]) * 2**20 > 1.1 * int(store), name


def test_gpus_are_asked_for_by_the_gpu_profile_alone(services: dict[str, Any]) -> None:
    having = [name for name, service in services.items() if "deploy" in service]
    assert having == ["ray-worker-gpu"] and services["ray-worker-gpu"]["profiles"] == ["gpu"]
    assert services["ray-worker"]["profiles"] == ["cpu"]
    assert services["ray-worker"]["command"] == services["ray-worker-gpu"]["command"]


@pytest.mark.parametrize("secret", SECRETS)
def test_without_a_secret_nothing_starts(secret: str) -> None:
    with pytest.raises(ValueError, match=secret):
        read({**filled(), secret: ""})


def test_the_example_has_every_variable_and_no_secret() -> None:
    used = set(re.findall(r"\$\{(\w+)", COMPOSE.read_text(encoding="utf-8")))
    optional = {"DECONVOY_DATA_ROOTS", "DECONVOY_PYTHON_MODELS", "DECONVOY_CONCURRENT_JOBS"}
    assert used - optional == set(example()) - {"COMPOSE_PROFILES"}
    assert {name for name, value in example().items() if not value} == set(SECRETS)
    assert "/.env\n" in (ROOT / ".gitignore").read_text(encoding="utf-8")
    assert EXAMPLE.name not in (ROOT / ".gitignore").read_text(encoding="utf-8")


def test_the_settings_of_the_api_fit(
    services: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in services["api"]["environment"].items():
        monkeypatch.setenv(name, value)
    settings = Settings(ray="ray-head:6379", host="0.0.0.0")
    assert settings.tokens and not settings.on_loopback
    assert settings.data_roots == ("/data", "s3://deconvoy/data")
    assert settings.python_models == () and settings.ray_node


def test_the_image_holds_what_its_file_copies() -> None:
    kept = {line[1:] for line in _lines(ROOT / ".dockerignore") if line.startswith("!")}
    copied = re.findall(r"^COPY (.+) \S+$", DOCKERFILE, re.MULTILINE)
    sources = {source for line in copied for source in line.split()}
    assert sources == kept and all((ROOT / source).exists() for source in sources)
    assert "--constraint constraints.txt" in DOCKERFILE
    (extras,) = re.findall(r"'\.\[([a-z,]+)\]'", DOCKERFILE)
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    # `up` serves the dashboard, too, unless it is told not to.
    assert {"workers", "ray", "service", "dashboard", "cloud"} <= set(extras.split(","))
    for extra in extras.split(","):
        assert re.search(rf"^{extra} = \[", project, re.MULTILINE), extra
    (version,) = re.findall(r"^FROM python:(3\.\d+)-slim$", DOCKERFILE, re.MULTILINE)
    assert version in ("3.11", "3.12", "3.13")


def _lines(file: Path) -> list[str]:
    return file.read_text(encoding="utf-8").splitlines()


def test_a_node_for_no_cluster_elsewhere_is_refused() -> None:
    for ray in ("local", "none"):
        with pytest.raises(RequestError, match="DECONVOY_RAY_NODE is for a cluster elsewhere"):
            read_settings(ray=ray, ray_node=True)
