"""The first catalogue: jobs, what people say of runs, tokens, sessions, login codes."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def moment() -> sa.DateTime:
    return sa.DateTime(timezone=True)


def upgrade() -> None:
    op.create_table(
        "jobs",
        sa.Column("number", sa.Integer, nullable=False),
        sa.Column("id", sa.String(64), nullable=False),
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("spec", sa.JSON, nullable=False),
        sa.Column("url", sa.Text, nullable=False),
        sa.Column("submitter", sa.String(64), nullable=False),
        sa.Column("idempotency_key", sa.Text),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("error", sa.Text),
        sa.Column("progress", sa.JSON),
        sa.Column("created", moment(), nullable=False),
        sa.Column("started", moment()),
        sa.Column("ended", moment()),
        sa.Column("attempts", sa.Integer, nullable=False),
        sa.PrimaryKeyConstraint("number", name="pk_jobs"),
        sa.UniqueConstraint("id", name="uq_jobs_id"),
        sa.UniqueConstraint(
            "submitter", "idempotency_key", name="uq_jobs_submitter_idempotency_key"
        ),
    )
    op.create_index("ix_jobs_state_number", "jobs", ["state", "number"])
    op.create_table(
        "runs",
        sa.Column("run_id", sa.Text, nullable=False),
        sa.Column("name", sa.Text),
        sa.Column("tags", sa.JSON, nullable=False),
        sa.Column("pinned", sa.Boolean, nullable=False),
        sa.PrimaryKeyConstraint("run_id", name="pk_runs"),
    )
    op.create_table(
        "tokens",
        sa.Column("id", sa.Integer, nullable=False),
        sa.Column("name", sa.String(64), nullable=False),
        sa.Column("digest", sa.String(64), nullable=False),
        sa.Column("scope", sa.String(16), nullable=False),
        sa.Column("created", moment(), nullable=False),
        sa.Column("expires", moment()),
        sa.Column("revoked", moment()),
        sa.Column("used", moment()),
        sa.PrimaryKeyConstraint("id", name="pk_tokens"),
        sa.UniqueConstraint("digest", name="uq_tokens_digest"),
    )
    op.create_index("ix_tokens_name", "tokens", ["name"])
    for table in ("sessions", "login_codes"):
        op.create_table(
            table,
            sa.Column("digest", sa.String(64), nullable=False),
            sa.Column("token_id", sa.Integer, nullable=False),
            sa.Column("expires", moment(), nullable=False),
            sa.PrimaryKeyConstraint("digest", name=f"pk_{table}"),
            sa.ForeignKeyConstraint(
                ["token_id"], ["tokens.id"], name=f"fk_{table}_token_id", ondelete="CASCADE"
            ),
        )
        op.create_index(f"ix_{table}_expires", table, ["expires"])


def downgrade() -> None:
    for table in ("login_codes", "sessions", "tokens", "runs", "jobs"):
        op.drop_table(table)
