"""Run by alembic: the steps go through the connection, and in the transaction, of the caller."""

from alembic import context

from clue_coordinator.migrations import VERSION_TABLE
from clue_coordinator.models import Base

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=Base.metadata,
    version_table=VERSION_TABLE,
)
with context.begin_transaction():
    context.run_migrations()
