"""The environment becomes settings, once and frozen."""

import sys
from dataclasses import FrozenInstanceError
from pathlib import Path

import pytest

from ledger import InvalidCommand
from ledger.settings import Settings


def test_an_empty_environment_means_the_embedded_database_of_the_user() -> None:
    """Without anything set there is no URL, the default schema, and a folder of the user's."""
    settings = Settings.read({})

    assert (settings.database_url, settings.schema) == (None, "ledger")
    assert settings.data_folder().parent.name == "ledger"


def test_variables_are_read() -> None:
    """Each variable has its field."""
    settings = Settings.read(
        {"LEDGER_DATABASE_URL": "postgresql://x", "LEDGER_SCHEMA": "books", "LEDGER_DATA": "/data/ledger"}
    )

    assert settings == Settings("postgresql://x", "books", Path("/data/ledger"))
    assert settings.data_folder() == Path("/data/ledger")


def test_an_empty_variable_counts_as_not_set() -> None:
    """`LEDGER_DATABASE_URL= ledger …` is how a shell unsets one for a command."""
    settings = Settings.read({"LEDGER_DATABASE_URL": "", "LEDGER_SCHEMA": "", "LEDGER_DATA": ""})

    assert settings == Settings()


def test_settings_do_not_change() -> None:
    """What was read stays as it was read."""
    with pytest.raises(FrozenInstanceError):
        Settings().schema = "other"  # type: ignore[misc]


def test_without_platformdirs_a_folder_has_to_be_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """The library that knows the user's folder is part of an extra; without it the error says what to do."""
    monkeypatch.setitem(sys.modules, "platformdirs", None)

    with pytest.raises(InvalidCommand, match=r"name a folder for the data, or install ledger\[cli\]"):
        Settings().data_folder()
