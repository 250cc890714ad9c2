"""What the doctor finds on machines that have, and lack, this and that."""

import os
import subprocess
import sys
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest

from service import collisions, doctor
from service.doctor import Finding

ROOT = Path(__file__).resolve().parents[1]


def the(findings: list[Finding], name: str) -> Finding:
    return next(finding for finding in findings if finding.name == name)


def test_this_machine_is_examined_without_loading_torch_or_ray() -> None:
    code = (
        "import sys; from service import doctor; found = doctor.examine(); "
        "print(*[f.name for f in found], sep='|'); print({'torch', 'ray'} & sys.modules.keys())"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    names, loaded = done.stdout.splitlines()
    assert loaded == "set()"
    for name in ("Python", "names", "cores", "GPUs", "Ray", "JPEG", "WebP", "fonts"):
        assert name in names.split("|")


def test_another_python_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    (found,) = doctor.python()
    assert found.remedy is None and sys.executable in found.found
    monkeypatch.setattr(doctor, "PYTHON", ((3, 98), (3, 99)))
    assert "3.11" in str(next(doctor.python()).remedy)


REQUIRED = [
    "numpy>=2.4",
    "zarr>=3.1.6",
    'matplotlib>=3.10; extra == "figures"',
    "ray>=2.60; extra == 'ray'",
    "deconvoy[figures,ray]; extra == 'all'",
]


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Versions as if these packages were installed, and no others."""
    versions = {"deconvoy": "0.1.0", "numpy": "2.4.6", "zarr": "3.1.6", "ray": "2.60.0"}

    def version(name: str) -> str:
        if name not in versions:
            raise PackageNotFoundError(name)
        return versions[name]

    monkeypatch.setattr("importlib.metadata.version", version)
    monkeypatch.setattr("importlib.metadata.requires", lambda _: REQUIRED)
    return versions


def test_extras_are_told_with_versions_and_missing_ones_are_no_fault(
    installed: dict[str, str],
) -> None:
    found = list(doctor.extras())
    assert [f.name for f in found] == ["deconvoy", "needed always", "extra figures", "extra ray"]
    assert the(found, "needed always").found == "numpy 2.4.6, zarr 3.1.6"
    assert the(found, "extra ray").found == "ray 2.60.0"
    assert "pip install 'deconvoy[figures]'" in the(found, "extra figures").found
    assert not any(f.remedy for f in found)


def test_old_and_missing_packages_are_faults(installed: dict[str, str]) -> None:
    del installed["numpy"]
    absent = the(list(doctor.extras()), "needed always")
    assert "numpy absent" in absent.found and absent.remedy == "pip install --upgrade 'deconvoy'"
    installed["numpy"], installed["zarr"], installed["ray"] = "2.4.0", "3.1.5", "2.9"
    found = list(doctor.extras())
    assert "zarr is 3.1.5, but at least 3.1.6" in the(found, "needed always").found
    assert the(found, "needed always").remedy == "pip install --upgrade 'deconvoy'"
    assert the(found, "extra ray").remedy == "pip install --upgrade 'deconvoy[ray]'"


def test_memory_is_that_of_the_container(tmp_path: Path) -> None:
    assert doctor.memory_free(tmp_path) is None
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/meminfo").write_text("MemTotal: 9000 kB\nMemAvailable:    8000 kB\n")
    assert doctor.memory_free(tmp_path) == 8000 * 1024
    group = tmp_path / "sys/fs/cgroup"
    group.mkdir(parents=True)
    (group / "memory.max").write_text("max\n")
    (group / "memory.current").write_text("1000000\n")
    assert doctor.memory_free(tmp_path) == 8000 * 1024
    (group / "memory.max").write_text("3000000\n")
    assert doctor.memory_free(tmp_path) == 2_000_000


def test_little_memory_and_disk_are_wrong(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(doctor, "memory_free", lambda: 10**8)
    monkeypatch.setattr(doctor, "DISK", 10**18)
    monkeypatch.setattr(doctor, "SHARED", 10**18)
    assert the(list(doctor.machine()), "memory").remedy
    found = list(doctor.disks())
    assert "--out" in str(the(found, f"disk {tmp_path}").remedy)
    if os.path.isdir("/dev/shm"):
        assert "--shm-size" in str(the(found, "/dev/shm").remedy)


@pytest.mark.parametrize(
    ("settings", "told", "remedy"),
    [
        ({}, "no RAY_ADDRESS", None),
        ({"RAY_ADDRESS": "a:1", "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "s"}, "a:1", None),
        ({"RAY_ADDRESS": "here:1", "RAY_AUTH_TOKEN": "s"}, "unset", "RAY_AUTH_MODE=token"),
        ({"RAY_ADDRESS": "here:1", "RAY_AUTH_MODE": "token"}, "unset", "RAY_AUTH_TOKEN to the"),
        ({"RAY_AUTH_TOKEN_PATH": "/nowhere"}, "/nowhere is no file", "write the cluster's token"),
    ],
)  # fmt: skip
def test_settings_of_ray_that_do_not_fit_are_wrong(
    monkeypatch: pytest.MonkeyPatch, settings: dict[str, str], told: str, remedy: str | None
) -> None:
    for name in ("RAY_ADDRESS", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    (found,) = doctor.ray()
    assert told in found.found
    assert (found.remedy is None) if remedy is None else remedy in str(found.remedy)


def test_the_token_of_a_cluster_is_never_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN", "geheim")
    assert "geheim" not in str(list(doctor.ray()))


def test_gpus_torch_cannot_use_are_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    def answer(of_torch: str | None, command: list[str]) -> str | None:
        return "A GPU, 80 GiB" if command[0] == "nvidia-smi" else of_torch

    monkeypatch.setattr(doctor, "_answer", lambda command: answer("1\nA GPU", command))
    assert list(doctor.gpus()) == [Finding("GPUs", "A GPU, 80 GiB; torch uses 1")]
    monkeypatch.setattr(doctor, "_answer", lambda command: answer("0", command))
    assert "CUDA" in str(next(doctor.gpus()).remedy)
    monkeypatch.setattr(doctor, "_answer", lambda command: None)
    assert next(doctor.gpus()).remedy is None


def test_a_missing_codec_of_pillow_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not any(finding.remedy for finding in doctor.pictures())
    monkeypatch.setattr("PIL.features.check", lambda key: key != "webp")
    assert [f.name for f in doctor.pictures() if f.remedy] == ["WebP"]


# -- names -------------------------------------------------------------------------------------


def test_files_named_like_our_packages_are_wrong(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    assert next(doctor.names()).remedy is None
    (tmp_path / "dashboard").mkdir()  # a folder without modules hides nothing
    assert collisions.in_folder(tmp_path) == []
    (tmp_path / "workers.py").touch()
    (tmp_path / "service").mkdir()
    (tmp_path / "service/__init__.py").touch()
    assert collisions.in_folder(tmp_path) == [tmp_path / "workers.py", tmp_path / "service"]
    found = next(doctor.names())
    assert str(tmp_path / "workers.py") in found.found and found.remedy == collisions.REMEDY
    assert collisions.in_folder(ROOT) == []


@pytest.mark.parametrize(
    ("file", "named"), [("workers.py", "workers.py"), ("dashboard/__init__.py", "dashboard")]
)
def test_a_command_started_where_our_packages_are_hidden_says_so(
    tmp_path: Path, file: str, named: str
) -> None:
    (tmp_path / file).parent.mkdir(exist_ok=True)
    (tmp_path / file).touch()
    code = "import sys; sys.path.insert(0, '.'); from service.cli import main; main(['show', 'x'])"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    said = " ".join(done.stderr.split())
    assert done.returncode == 2 and "Traceback" not in said
    package = named.removesuffix(".py")
    assert f"{tmp_path / named}' is named like the package '{package}'" in said
    assert "rename it" in said


def test_a_job_on_ray_is_refused_where_its_workers_would_import_another_module(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from deconvoy.errors import RequestError
    from deconvoy.spec import ComputeSpec
    from service.launcher import executor_of

    (tmp_path / "workers.py").touch()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RequestError, match="workers.py' is named like the package 'workers'"):
        executor_of("ray", ComputeSpec(), None)
