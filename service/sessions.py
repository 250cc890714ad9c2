"""How a browser comes in: a login code or a token is swapped for a session, kept in a cookie.

Both are random, stored as digests, and end with the token that they stand for.
"""

import hmac
import secrets
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import Table, bindparam, delete, insert, select

from service.catalogue_tables import login_codes, sessions, tokens
from service.database import Database
from service.tokens import COLUMNS, SECRET_BYTES, Token, as_token, digest_of

SESSION_LIFETIME = timedelta(hours=12)
CODE_LIFETIME = timedelta(minutes=10)


class Sessions:
    """The sessions and login codes of one catalogue."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def begin(self, token: Token, lifetime: timedelta = SESSION_LIFETIME) -> str:
        """The secret of a new session."""
        return self._add(sessions, token, lifetime)

    def find(self, secret: str) -> Token | None:
        """The token of a session, while both are valid."""
        digest = digest_of(secret)
        with self._database.reading() as connection:
            row = connection.execute(_BY_DIGEST, {"digest": digest}).mappings().first()
        if row is None or not hmac.compare_digest(row["session"], digest):
            return None
        return _valid(row) if row["until"] > datetime.now(UTC) else None

    def end(self, secret: str) -> None:
        with self._database.writing() as connection:
            connection.execute(delete(sessions).where(sessions.c.digest == digest_of(secret)))

    def new_code(self, token: Token, lifetime: timedelta = CODE_LIFETIME) -> str:
        """A code that lets one browser in, once, within minutes."""
        return self._add(login_codes, token, lifetime)

    def redeem(self, code: str) -> Token | None:
        """The token that a code stands for; the code is gone then, whoever else holds it."""
        now = datetime.now(UTC)
        taken = delete(login_codes).where(login_codes.c.digest == digest_of(code))
        with self._database.writing() as connection:
            row = connection.execute(
                taken.returning(login_codes.c.token_id, login_codes.c.expires)
            ).first()
            if row is None or row.expires <= now:
                return None
            found = select(*COLUMNS).where(tokens.c.id == row.token_id)
            return _valid(connection.execute(found).mappings().one())

    def _add(self, table: Table, token: Token, lifetime: timedelta) -> str:
        """The secret of a new row; those that are over are swept away."""
        secret, now = secrets.token_urlsafe(SECRET_BYTES), datetime.now(UTC)
        row = {"digest": digest_of(secret), "token_id": token.id, "expires": now + lifetime}
        with self._database.writing() as connection:
            connection.execute(delete(table).where(table.c.expires <= now))
            connection.execute(insert(table).values(row))
        return secret


# Made once, since every picture that a browser shows asks.
_BY_DIGEST = (
    select(*COLUMNS, sessions.c.digest.label("session"), sessions.c.expires.label("until"))
    .join(sessions, sessions.c.token_id == tokens.c.id)
    .where(sessions.c.digest == bindparam("digest"))
)


def _valid(row: Mapping[Any, Any]) -> Token | None:
    token = as_token(row)
    return token if token.state == "valid" else None
