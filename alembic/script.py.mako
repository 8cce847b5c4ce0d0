"""
${message}

Why:
Locks taken:
How to undo:
"""

from alembic import op

revision = ${repr(up_revision)}
down_revision = ${repr(down_revision)}
branch_labels = None
depends_on = None


def upgrade(schema: str) -> None:
    ${upgrades if upgrades else "raise NotImplementedError"}


def downgrade(schema: str) -> None:
    ${downgrades if downgrades else "raise NotImplementedError"}
