"""The database of the catalogue: SQLite in a file, or PostgreSQL by URL.

Its engine, its transactions and its migrations; whatever goes wrong is told without the password.
"""

import fcntl
import sqlite3
import zlib
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine, create_engine, event, func, select
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, DatabaseError, InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolExhausted

from deconvoy.errors import CatalogueNewer, CatalogueUnavailable, RequestError

SECONDS_TO_CONNECT = 10
BUSY_SECONDS = 30
"""A writer of SQLite waits so long for another one; each writes for milliseconds."""

MIGRATIONS = Path(__file__).parent / "migrations"
FORMS = "`sqlite:///path/to/file.db` or `postgresql+psycopg://user:password@host/name`"


class Database:
    """Making one connects to nothing.  Threads may share it; processes each make their own."""

    def __init__(self, url: str) -> None:
        self.url = _parsed(url)
        self.is_sqlite = self.url.get_backend_name() == "sqlite"
        self.engine = _sqlite_engine(self.url) if self.is_sqlite else _postgresql_engine(self.url)
        self._writer = self.engine.execution_options(writes=True)
        # Readers ask one thing at a time, so they need no transaction around it.
        reads = {} if self.is_sqlite else {"isolation_level": "AUTOCOMMIT"}
        self._reader = self.engine.execution_options(**reads)

    @property
    def shown(self) -> str:
        """Its URL without password, and without parameters, which may hold one, too."""
        return self.url.set(query={}).render_as_string(hide_password=True)

    @contextmanager
    def reading(self) -> Iterator[Connection]:
        """Each statement sees what is committed by then."""
        with self._told(), self._reader.connect() as connection:
            yield connection

    @contextmanager
    def writing(self, alone_for: str | None = None) -> Iterator[Connection]:
        """A transaction, committed at its end.

        Args:
            alone_for: what no two processes may do at the same time.  SQLite has one writer anyway;
                PostgreSQL takes an advisory lock by that name until the transaction ends, however
                it ends.
        """
        with self._told(), self._writer.begin() as connection:
            if alone_for and not self.is_sqlite:
                key = zlib.crc32(f"deconvoy {alone_for}".encode())
                connection.execute(select(func.pg_advisory_xact_lock(key)))
            yield connection

    def upgrade(self) -> None:
        """Bring the tables up to this version; several processes may do so at once."""
        # An API that is up in seconds asks for Alembic only when it migrates.
        from alembic.command import upgrade
        from alembic.config import Config
        from alembic.runtime.migration import MigrationContext
        from alembic.script import ScriptDirectory

        config = Config()
        config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
        known = {script.revision for script in ScriptDirectory.from_config(config).walk_revisions()}
        if self.is_sqlite:
            self._prepare_file()
        try:
            with self.writing("upgrade") as connection:
                there = set(MigrationContext.configure(connection).get_current_heads())
                if not there <= known:
                    raise CatalogueNewer(
                        f"The catalogue {self.shown} is of revision {', '.join(sorted(there))}, "
                        f"and this version of Deconvoy knows {', '.join(sorted(known))}: a later "
                        f"version wrote it, so install that one."
                    )
                config.attributes["connection"] = connection
                upgrade(config, "head")
        except DatabaseError as error:
            raise self._unavailable(error) from error

    def close(self) -> None:
        self.engine.dispose()

    def _prepare_file(self) -> None:
        """The file's folder, and the write-ahead log, which stays on once it is on."""
        file = Path(self.url.database or "")
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        # While one process turns the log on, SQLite tells others at once that the file is locked.
        with file.with_name(f"{file.name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            # Specs and names are nobody else's business; what SQLite puts beside it is alike.
            file.touch(mode=0o600)
            try:
                with closing(self.engine.raw_connection()) as connection:
                    connection.cursor().execute("PRAGMA journal_mode = WAL").close()
            except sqlite3.Error as error:
                raise self._unavailable(error) from error

    @contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except (OperationalError, InterfaceError, PoolExhausted) as error:
            raise self._unavailable(error) from error

    def _unavailable(self, error: Exception) -> CatalogueUnavailable:
        lines = str(getattr(error, "orig", None) or error).strip().splitlines()
        reason = lines[0].strip().rstrip(".") if lines else type(error).__name__
        return CatalogueUnavailable(
            f"The catalogue {self.shown} cannot be used: {reason}. Check DECONVOY_DATABASE, and "
            f"that the database is there and takes us."
        )


def _parsed(url: str) -> URL:
    try:
        parsed = make_url(url)
    except (ArgumentError, ValueError):
        # What could not be parsed may hold a password anywhere, so none of it is shown.
        raise RequestError(
            f"The URL of the catalogue cannot be read: it takes the form {FORMS}, and special "
            f"characters of a password are written as in `%40` for `@`."
        ) from None
    if parsed.drivername in ("postgresql", "postgresql+psycopg"):
        return parsed.set(drivername="postgresql+psycopg")
    if parsed.drivername == "sqlite" and parsed.database not in (None, "", ":memory:"):
        return parsed
    shown = parsed.set(query={}).render_as_string(hide_password=True)
    raise RequestError(f"{shown!r} is no place for the catalogue: it takes {FORMS}.")


def _postgresql_engine(url: URL) -> Engine:
    # Values never show in messages of errors: they are digests of tokens, or what people typed.
    return create_engine(
        url,
        hide_parameters=True,
        pool_pre_ping=True,
        connect_args={"connect_timeout": SECONDS_TO_CONNECT},
    )


def _sqlite_engine(url: URL) -> Engine:
    engine = create_engine(url, hide_parameters=True, connect_args={"timeout": BUSY_SECONDS})

    @event.listens_for(engine, "connect")
    def prepare(connection: sqlite3.Connection, record: Any) -> None:
        connection.isolation_level = None  # the driver begins nothing: `begin` below does
        connection.execute("PRAGMA foreign_keys = ON").close()
        connection.execute("PRAGMA synchronous = NORMAL").close()

    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        # A transaction that begins with reading and then writes fails without waiting where
        # another wrote in between; one that says at once that it writes waits for its turn.
        if connection.get_execution_options().get("writes"):
            connection.exec_driver_sql("BEGIN IMMEDIATE")

    return engine
