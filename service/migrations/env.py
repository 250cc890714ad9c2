"""What Alembic runs to migrate: on the connection, and in the transaction, that it is handed."""

from alembic import context

from service.catalogue_tables import metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    # SQLite can undo a half-made table, too; its batches stand in for ALTER, which it lacks.
    transactional_ddl=True,
    render_as_batch=True,
)
with context.begin_transaction():
    context.run_migrations()
