"""The program `openssl`: it verifies what we sign, and is an authority for timestamps."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Final

import pytest

OPENSSL: Final = shutil.which("openssl")

_CONFIGURATION: Final = """\
[tsa]
default_tsa = here
[here]
serial = {folder}/serial
crypto_device = builtin
signer_cert = {folder}/tsa.pem
signer_key = {folder}/tsa.key
signer_digest = sha256
default_policy = 1.2.3.4.1
digests = sha256, sha512
accuracy = secs:1
ess_cert_id_chain = no
ess_cert_id_alg = sha256
[ca]
basicConstraints = critical, CA:TRUE
keyUsage = critical, keyCertSign, cRLSign
[stamping]
basicConstraints = critical, CA:FALSE
keyUsage = critical, digitalSignature
extendedKeyUsage = critical, timeStamping
"""


def openssl(*arguments: str | Path, check: bool = True) -> subprocess.CompletedProcess[bytes]:
    """Run `openssl`."""
    if OPENSSL is None:
        pytest.skip("openssl is not installed")
    return subprocess.run([OPENSSL, *arguments], check=check, capture_output=True, timeout=60)


class TimestampAuthority:
    """An RFC 3161 authority in a folder, with a root certificate of its own: `openssl ts`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir()
        (folder / "serial").write_text("01\n")
        self._configuration = folder / "openssl.cnf"
        self._configuration.write_text(_CONFIGURATION.format(folder=folder))
        self._make("ca", "ca", "-days", "60")
        self._make("tsa", "stamping", "-days", "30", "-CA", folder / "ca.pem", "-CAkey", folder / "ca.key")

    @property
    def roots(self) -> bytes:
        """The certificate that those who trust this authority trust."""
        return (self.folder / "ca.pem").read_bytes()

    def __call__(self, request: bytes) -> bytes:
        """Answer a request."""
        query, response = self.folder / "query.tsq", self.folder / "response.tsr"
        query.write_bytes(request)
        section = ("-config", self._configuration, "-section", "here")
        openssl("ts", "-reply", "-queryfile", query, "-out", response, *section)
        return response.read_bytes()

    def verifies(self, note: Path, response: Path) -> bool:
        """Whether `openssl ts` takes a response for a timestamp of a file."""
        files = ("-data", note, "-in", response, "-CAfile", self.folder / "ca.pem")
        return openssl("ts", "-verify", *files, check=False).returncode == 0

    def _make(self, name: str, extensions: str, *more: str | Path) -> None:
        key, certificate = self.folder / f"{name}.key", self.folder / f"{name}.pem"
        new = ("-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-keyout", key)
        subject = ("-subj", f"/CN=Test {name} of {self.folder.name}", "-config", self._configuration)
        openssl("req", *new, "-out", certificate, *subject, "-extensions", extensions, *more)
