"""The tables of the catalogue, as SQLAlchemy Core; ``service/migrations`` makes them.

A change here needs a migration: a test compares the two.
"""

from datetime import UTC, datetime

from sqlalchemy import (
    JSON,
    Boolean,
    Column,
    DateTime,
    Dialect,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    TypeDecorator,
    UniqueConstraint,
)

DIGEST = 64
"""Characters of a SHA-256 in hexadecimal."""


class Moment(TypeDecorator[datetime]):
    """A time in UTC.  SQLite keeps no zone, so it goes without one there and gets it back."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        if value is None:
            return None
        assert value.tzinfo is not None, "a time of the catalogue has a zone"
        value = value.astimezone(UTC)
        return value.replace(tzinfo=None) if dialect.name == "sqlite" else value

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


# Names of constraints are fixed, so that a later migration can speak of them on any database.
metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s",
        "pk": "pk_%(table_name)s",
    }
)

jobs = Table(
    "jobs",
    metadata,
    # Jobs are ordered by this number, not by their time: clocks go back.
    Column("number", Integer, primary_key=True),
    Column("id", String(64), nullable=False, unique=True),
    Column("name", Text, nullable=False),
    Column("spec", JSON, nullable=False),
    Column("url", Text, nullable=False),
    Column("submitter", String(64), nullable=False),
    Column("idempotency_key", Text),
    Column("state", String(16), nullable=False),
    Column("error", Text),
    Column("progress", JSON(none_as_null=True)),
    Column("created", Moment, nullable=False),
    Column("started", Moment),
    Column("ended", Moment),
    Column("attempts", Integer, nullable=False),
    UniqueConstraint("submitter", "idempotency_key"),
    Index(None, "state", "number"),
)

runs = Table(
    "runs",
    metadata,
    Column("run_id", Text, primary_key=True),
    Column("name", Text),
    Column("tags", JSON, nullable=False),
    Column("pinned", Boolean, nullable=False),
)

tokens = Table(
    "tokens",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("name", String(64), nullable=False, index=True),
    Column("digest", String(DIGEST), nullable=False, unique=True),
    Column("scope", String(16), nullable=False),
    Column("created", Moment, nullable=False),
    Column("expires", Moment),
    Column("revoked", Moment),
    Column("used", Moment),
)

sessions = Table(
    "sessions",
    metadata,
    Column("digest", String(DIGEST), primary_key=True),
    Column("token_id", ForeignKey("tokens.id", ondelete="CASCADE"), nullable=False),
    Column("expires", Moment, nullable=False, index=True),
)

login_codes = Table(
    "login_codes",
    metadata,
    Column("digest", String(DIGEST), primary_key=True),
    Column("token_id", ForeignKey("tokens.id", ondelete="CASCADE"), nullable=False),
    Column("expires", Moment, nullable=False, index=True),
)
