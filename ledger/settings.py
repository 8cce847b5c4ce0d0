"""Environment → frozen settings.  The only reader of the environment."""

from __future__ import annotations

import importlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from ledger.core.errors import InvalidCommand
from ledger.storage.tables import DEFAULT_SCHEMA


@dataclass(frozen=True, slots=True)
class Settings:
    """
    Which ledger a program of ours works on.

    Without a `database_url` it is the embedded PostgreSQL with its data in `folder`; without a folder
    that one lives in the user's data folder.
    """

    database_url: str | None = None
    schema: str = DEFAULT_SCHEMA
    folder: Path | None = None

    @classmethod
    def read(cls, environment: Mapping[str, str] = os.environ) -> Self:
        """Read LEDGER_DATABASE_URL, LEDGER_SCHEMA and LEDGER_DATA; an empty one counts as not set."""
        folder = environment.get("LEDGER_DATA")
        return cls(
            database_url=environment.get("LEDGER_DATABASE_URL") or None,
            schema=environment.get("LEDGER_SCHEMA") or DEFAULT_SCHEMA,
            folder=Path(folder) if folder else None,
        )

    def data_folder(self) -> Path:
        """
        Where the embedded PostgreSQL keeps its data.

        Raises:
            InvalidCommand: No folder is named, and the library that knows the user's is not installed.
        """
        if self.folder is not None:
            return self.folder
        try:
            platformdirs = importlib.import_module("platformdirs")
        except ImportError:
            raise InvalidCommand("LEDGER_DATA", "name a folder for the data, or install ledger[cli]") from None
        return Path(platformdirs.user_data_path("ledger")) / "postgresql"
