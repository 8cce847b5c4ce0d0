"""
Write down what the migrations make, for the doctor to compare with: `python tests/postgres/write_catalogue.py`.

To be run once a migration was added.  It starts an embedded PostgreSQL of its own.
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

from ledger import Ledger
from ledger.audit.rights import granted, roles_of
from ledger.storage import embedded
from ledger.storage.catalogue import WRITTEN, Catalogue, Written, write
from ledger.storage.database import Connection, Database


def made_by_migrations(url: str, prefix: str) -> Written:
    """What a schema says that was migrated just now, in an empty database, with roles of this prefix."""
    with Ledger.connect(url) as ledger:
        revision = ledger.migrate().head
        ledger.create_roles(prefix)

        def read(connection: Connection) -> Written:
            with connection.transaction(read_only=True):
                catalogue = Catalogue(connection)
                relations = catalogue.relations()
                facts = catalogue.facts(relations) | granted(connection, relations, roles_of(prefix))
                return Written(revision, facts)

        return Database(ledger.engine, "ledger").ask(read)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory(prefix="ledger-catalogue-") as folder:
        try:
            made = made_by_migrations(embedded.start(Path(folder) / "data"), f"ledger_written_{os.getpid()}")
        finally:
            embedded.stop(Path(folder) / "data")
    write(made.revision, made.facts)
    sys.stdout.write(f"{WRITTEN.name}: {len(made.facts)} facts of revision {made.revision}\n")
