"""The environment becomes settings, once and frozen."""

import sys
from dataclasses import FrozenInstanceError
from pathlib import Path

import pytest

from ledger import InvalidCommand
from ledger.settings import Limits, ServiceSettings, Settings, Tokens


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


def test_variables_of_the_service_are_read() -> None:
    """Each variable has its field, the limits too; what is empty counts as not set."""
    settings = ServiceSettings.read(
        {
            "LEDGER_SERVE_HOST": "::1",
            "LEDGER_SERVE_PORT": "0",
            "LEDGER_SERVE_CERTIFICATE": "chain.pem",
            "LEDGER_SERVE_PRIVATE_KEY": "key.pem",
            "LEDGER_SERVE_BEHIND_PROXY": "1",
            "LEDGER_SERVE_TOKEN_ISSUER": "https://issuer.example",
            "LEDGER_SERVE_TOKEN_AUDIENCE": "ledger",
            "LEDGER_SERVE_TOKEN_KEYS": "/etc/ledger/keys.json",
            "LEDGER_SERVE_TOKEN_ALGORITHMS": "ES256, EdDSA",
            "LEDGER_SERVE_RATE": "50",
            "LEDGER_SERVE_READ_SECONDS": "2.5",
            "LEDGER_SERVE_READERS": "",
        }
    )

    tokens = Tokens("https://issuer.example", "ledger", "/etc/ledger/keys.json", ("ES256", "EdDSA"))
    limits = Limits(rate=50, read_seconds=2.5)
    assert settings == ServiceSettings(
        "::1", 0, Path("chain.pem"), Path("key.pem"), behind_proxy=True, tokens=tokens, limits=limits
    )
    assert ServiceSettings.read({}) == ServiceSettings()


@pytest.mark.parametrize(
    ("name", "value"),
    [("PORT", "65536"), ("PORT", "http"), ("RATE", "0"), ("RATE", "2.5"), ("READERS", "many"), ("BULKS", "-1")],
)
def test_what_cannot_be_a_setting_of_the_service_is_refused(name: str, value: str) -> None:
    """It says which variable, and what it may be."""
    with pytest.raises(InvalidCommand, match=f"LEDGER_SERVE_{name}"):
        ServiceSettings.read({f"LEDGER_SERVE_{name}": value})


def test_tokens_take_an_issuer_an_audience_and_keys() -> None:
    """With only some of them nobody would be let in, or anybody."""
    with pytest.raises(InvalidCommand, match="all three"):
        ServiceSettings.read({"LEDGER_SERVE_TOKEN_ISSUER": "https://issuer.example"})
