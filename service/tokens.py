"""Tokens: what programs show to be let in.  The catalogue keeps their digests, never themselves."""

import hashlib
import hmac
import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import bindparam, insert, select, update

from deconvoy.errors import RequestError
from service.catalogue_tables import tokens
from service.database import Database
from service.scopes import Scope

PREFIX = "dv_"
SECRET_BYTES = 32
LOCAL = "local"
"""The name of the tokens that a service on a loopback address makes by itself."""
ANONYMOUS = "anonymous"
"""Who a caller is where tokens are turned off."""
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,63}")
USED_EVERY = timedelta(minutes=1)
"""The last use is noted so often at most, because noting it is a write."""


@dataclass(frozen=True)
class Token:
    """What is known of a token; times are in UTC."""

    id: int
    name: str
    scope: Scope
    created: datetime
    expires: datetime | None
    revoked: datetime | None
    used: datetime | None

    @property
    def state(self) -> str:
        """``valid``, ``expired`` or ``revoked``."""
        if self.revoked is not None:
            return "revoked"
        if self.expires is not None and self.expires <= datetime.now(UTC):
            return "expired"
        return "valid"


class Tokens:
    """The tokens of one catalogue."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def create(self, name: str, scope: Scope, lifetime: timedelta | None = None) -> str:
        """A new token, which nobody can look up again.

        Args:
            lifetime: default: until it is revoked.

        Raises:
            RequestError: the name is reserved, or that of a token that is not revoked.
        """
        if not NAME.fullmatch(name) or name in (LOCAL, ANONYMOUS):
            raise RequestError(
                f"The name {name[:64]!r} does not fit a token: it takes letters, digits and "
                f"`._@-`, at most 64, and neither {LOCAL!r} nor {ANONYMOUS!r}."
            )
        with self._database.writing(alone_for="tokens") as connection:
            named = select(tokens).where(tokens.c.name == name, tokens.c.revoked.is_(None))
            if connection.execute(named).first() is not None:
                raise RequestError(
                    f"There is a token {name!r} already: choose another name, or revoke that one "
                    f"first with `deconvoy token revoke {name}`."
                )
            secret, row = _new(name, scope, lifetime)
            connection.execute(insert(tokens).values(row))
        return secret

    def create_local(self) -> str:
        """One more token for whoever started the service; it may do everything."""
        secret, row = _new(LOCAL, Scope.admin, None)
        with self._database.writing() as connection:
            connection.execute(insert(tokens).values(row))
        return secret

    def all(self) -> list[Token]:
        """Oldest first, revoked and expired ones among them."""
        with self._database.reading() as connection:
            rows = connection.execute(select(*COLUMNS).order_by(tokens.c.id)).mappings()
            return [as_token(row) for row in rows]

    def revoke(self, name: str) -> None:
        """Every token of that name; sessions that began with one end, too."""
        named = update(tokens).where(tokens.c.name == name, tokens.c.revoked.is_(None))
        revoked = named.values(revoked=datetime.now(UTC)).returning(tokens.c.id)
        with self._database.writing(alone_for="tokens") as connection:
            if not connection.execute(revoked).all():
                raise RequestError(
                    f"There is no token {name[:64]!r} to revoke: `deconvoy token list` shows them."
                )

    def find(self, secret: str) -> Token | None:
        """The token, whatever its state; its use is noted where it is valid."""
        digest = digest_of(secret)
        with self._database.reading() as connection:
            row = connection.execute(_BY_DIGEST, {"digest": digest}).mappings().first()
        if row is None or not hmac.compare_digest(row["digest"], digest):
            return None
        token = as_token(row)
        if token.state == "valid":
            self._note_use(token)
        return token

    def any_valid(self) -> bool:
        """Whether anybody could come in."""
        return any(token.state == "valid" for token in self.all())

    def _note_use(self, token: Token) -> None:
        now = datetime.now(UTC)
        if token.used is None or now - token.used > USED_EVERY:
            with self._database.writing() as connection:
                noted = update(tokens).where(tokens.c.id == token.id).values(used=now)
                connection.execute(noted)


COLUMNS = tuple(column for column in tokens.c if column.name != "digest")
# Made once, since every request asks.
_BY_DIGEST = select(*tokens.c).where(tokens.c.digest == bindparam("digest"))


def digest_of(secret: str) -> str:
    """As it is stored.  A secret of 256 random bits needs neither salt nor a slow hash."""
    return hashlib.sha256(secret.encode("utf-8", "surrogateescape")).hexdigest()


def as_token(row: Mapping[Any, Any]) -> Token:
    fields = {column.name: row[column.name] for column in COLUMNS}
    return Token(**{**fields, "scope": Scope(row["scope"])})


def _new(name: str, scope: Scope, lifetime: timedelta | None) -> tuple[str, dict[str, Any]]:
    secret = PREFIX + secrets.token_urlsafe(SECRET_BYTES)
    now = datetime.now(UTC)
    row = {
        "name": name,
        "digest": digest_of(secret),
        "scope": scope.value,
        "created": now,
        "expires": None if lifetime is None else now + lifetime,
    }
    return secret, row
