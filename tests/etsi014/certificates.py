"""Client certificates of a demo's CA that say what a test wants them to say."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.x509.oid import NameOID

from tests.world import Demo

_NUMBERS = itertools.count(1)


def issue(
    demo: Demo,
    names: Sequence[x509.GeneralName] = (),
    *,
    common_names: Sequence[str] = (),
    serial_number: str | None = None,
    extension: x509.ExtensionType | None = None,
    authority: Path | None = None,
) -> Path:
    """The directory of a new certificate with these names, of the demo's CA or of the one in ``authority``.

    ``serial_number`` is the subject's attribute of that name, not the certificate's number.
    """
    directory = authority or demo.directory / "ca"
    ca = x509.load_pem_x509_certificate((directory / "ca.pem").read_bytes())
    ca_key = serialization.load_pem_private_key((directory / "ca.key").read_bytes(), None)
    assert isinstance(ca_key, ec.EllipticCurvePrivateKey)
    subject = [x509.NameAttribute(NameOID.COMMON_NAME, name) for name in common_names]
    if serial_number is not None:
        subject.append(x509.NameAttribute(NameOID.SERIAL_NUMBER, serial_number))
    key, now = ec.generate_private_key(ec.SECP256R1()), datetime.now(UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(x509.Name(subject))
        .issuer_name(ca.subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(days=1))
    )
    if names:
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
    if extension is not None:
        builder = builder.add_extension(extension, critical=False)
    home = demo.directory / f"issued-{next(_NUMBERS)}"
    home.mkdir()
    certificate = builder.sign(ca_key, SHA256())
    (home / "cert.pem").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    (home / "key.pem").write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
    )
    return home
