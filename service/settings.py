"""What an operator may set: by environment variables ``DECONVOY_…``, or options of ``deconvoy up``.

Lists are written as JSON: ``DECONVOY_DATA_ROOTS='["/data", "s3://photos"]'``.
"""

import json
from ipaddress import IPv4Network, IPv6Network
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, IPvAnyNetwork, SecretStr, ValidationError, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict, SettingsError

from deconvoy.errors import RequestError

MIB = 2**20


class Settings(BaseSettings):
    """One service.  Frozen; what is derived from it is a property."""

    model_config = SettingsConfigDict(env_prefix="DECONVOY_", frozen=True, extra="forbid")

    home: Path = Path("~/.deconvoy")
    """Where the catalogue, the local token and the state of a local Ray are kept."""
    database: SecretStr | None = None
    """Of the catalogue, as SQLAlchemy writes it (``postgresql+psycopg://user:…@host/name``);
    default: a SQLite file below ``home``."""
    runs: str = ""
    """Folder or ``s3://…`` below which jobs write their runs; default: ``runs`` below ``home``."""
    browse: tuple[str, ...] = ()
    """Runs elsewhere that are shown, too."""

    data_roots: tuple[str, ...] = ()
    """Folders and URLs below which a job's images, labels and weights may lie.  Built-in images
    (``shapes?…``) and named weights need none."""
    python_models: tuple[str, ...] = ()
    """Models that are Python code and may be run: as in ``model.name``, ``*`` for any text."""

    host: str = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=65_535)] = 8000
    hosts: tuple[str, ...] = ()
    """Names under which browsers and programs reach the service, besides the loopback ones."""
    proxies: tuple[IPvAnyNetwork, ...] = (IPv4Network("127.0.0.1"), IPv6Network("::1"))
    """Addresses and networks of proxies that are believed when they say, in X-Forwarded-Proto, that
    a browser came over https: its session's cookie is then sent over nothing else."""
    tokens: bool = True
    """Whether callers must show a token.  It can only be turned off on a loopback address."""

    ray: str = "local"
    """``local``: one on this machine, beside the service; ``none``: no jobs, only browsing; else
    the address of a running cluster."""
    ray_node: bool = False
    """Join that cluster with a node that computes nothing, which ends with the service: for where
    this machine is no node of it, because Ray lets only its nodes in."""
    concurrent_jobs: Annotated[int, Field(ge=1, le=64)] = 1
    """Jobs that run at a time; others wait."""

    body_bytes: Annotated[int, Field(ge=1024)] = MIB
    """Of a request, at most."""
    upload_bytes: Annotated[int, Field(ge=1024)] = 16 * MIB
    """Of an image that somebody hands in, at most."""
    upload_days: Annotated[int, Field(ge=1, le=36_500)] = 7
    """So long an image that was handed in is kept at least; where a job or a run has it, as long as
    that is there."""
    page_rows: Annotated[int, Field(ge=1)] = 1000
    """Of a JSON page, at most."""
    picture_pixels: Annotated[int, Field(ge=10_000)] = 40_000_000
    """Of a drawn figure, at most."""
    plan_seconds: Annotated[float, Field(gt=0)] = 120.0
    """A plan may take."""
    plan_bytes: Annotated[int, Field(ge=256 * MIB)] = 16 * 1024 * MIB
    """Of memory a plan may take."""
    log: Literal["json", "text"] = "text"

    def environment(self) -> dict[str, str]:
        """The same as variables, for processes beside this one."""
        found = {}
        for name in type(self).model_fields:
            value = getattr(self, name)
            if value is not None:
                plain = value.get_secret_value() if isinstance(value, SecretStr) else value
                text = plain if isinstance(plain, str) else json.dumps(plain, default=str)
                found[f"DECONVOY_{name.upper()}"] = text.strip('"') if name == "home" else text
        return found

    @model_validator(mode="after")
    def _node_has_a_cluster(self) -> "Settings":
        if self.ray_node and self.ray in ("local", "none"):
            raise ValueError(
                f"DECONVOY_RAY_NODE is for a cluster elsewhere, and DECONVOY_RAY is {self.ray!r}: "
                "set that to its address, as in host:6379"
            )
        return self

    @property
    def home_folder(self) -> Path:
        return self.home.expanduser().absolute()

    @property
    def database_url(self) -> str:
        if self.database is not None:
            return self.database.get_secret_value()
        return f"sqlite:///{self.home_folder / 'catalogue.db'}"

    @property
    def runs_root(self) -> str:
        runs = self.runs or str(self.home_folder / "runs")
        return runs if "://" in runs else str(Path(runs).expanduser().absolute())

    @property
    def uploads(self) -> str:
        """Where images that people hand in are kept: where every worker can read, as runs are."""
        return f"{self.runs_root.rstrip('/')}/.uploads"

    @property
    def readable(self) -> tuple[str, ...]:
        """Places below which jobs may read."""
        return (*self.data_roots, self.uploads)

    @property
    def token_file(self) -> Path:
        """The token of whoever started the service, for the command line and ``Client``."""
        return self.home_folder / "token"

    @property
    def on_loopback(self) -> bool:
        return self.host in ("127.0.0.1", "::1", "localhost")


def read_settings(**options: Any) -> Settings:
    """The settings of this process; what is given as an option goes before the environment.

    Raises:
        RequestError: one of them does not fit.
    """
    try:
        return Settings(**options)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        told = first["msg"].removeprefix("Value error, ").rstrip(".")
        if not first["loc"]:  # of several settings together
            raise RequestError(f"The settings do not fit: {told}.") from None
        name = ".".join(map(str, first["loc"])).upper()
        raise RequestError(f"The setting DECONVOY_{name} does not fit: {told}.") from None
    except SettingsError as error:
        raise RequestError(
            f"The settings cannot be read: {error}; lists are written as JSON, as in "
            f"DECONVOY_HOSTS='[\"a.example\"]'."
        ) from None
