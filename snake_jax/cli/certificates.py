"""Carries out `snake-jax certificates`: an authority of one's own, and a certificate a host.

Keys are of the curve P-256, signatures of ECDSA with SHA-256. A certificate serves both ends of a
connection, since in a cluster every machine calls and is called.
"""

import datetime
import ipaddress
import os
import re
from pathlib import Path
from typing import NamedTuple

from snake_jax.cli.commands.command import Given
from snake_jax.errors import UserError

try:
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
except ImportError as error:
    raise UserError(
        "snake-jax certificates needs the package cryptography: pip install cryptography"
    ) from error

CA, CA_KEY, CERTIFICATE, KEY = "ca.pem", "ca-key.pem", "cert.pem", "key.pem"
_HOST_NAME = re.compile(r"(?!-)[A-Za-z0-9-]{1,63}(?<!-)(\.(?!-)[A-Za-z0-9-]{1,63}(?<!-))*")
_AUTHORITY = "snake_jax authority"
_AUTHORITY_YEARS = 10
_CLOCKS_APART = datetime.timedelta(minutes=10)
"""A certificate is valid from so long before it is made, for machines whose clocks are behind."""


class Authority(NamedTuple):
    """Who signs: the certificate that all trust, and the key that stays in its folder."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey


def main(given: Given) -> None:
    """Makes what is missing, and says what was made and how it is used."""
    if len(given.paths) != 1:
        raise UserError(
            f"one folder is wanted, not {len(given.paths)}: snake-jax certificates keys "
            f"--hosts=head.lan"
        )
    folder = Path(given.paths[0])
    hosts = list(dict.fromkeys(host.strip() for host in given.flags.hosts))
    wrong = [host for host in hosts if not _is_host(host)]
    if wrong or not hosts:
        raise UserError(
            f"--hosts={','.join(wrong)}: want names or addresses of machines, as head.lan,10.0.0.7"
        )
    made = make(folder, hosts, given.flags.days)
    for path in made:
        print(f"made {path}")
    if not made:
        print(f"{folder}: all there already")
    _explain(folder, hosts[0])


def make(folder: Path, hosts: list[str], days: int) -> list[Path]:
    """The authority and the hosts' certificates, where they are not there yet.

    Args:
      folder: of the authority; a host's files lie in a folder of its name within.
      hosts: names or addresses.
      days: that the hosts' certificates are valid for.

    Returns:
      The files that were made.

    Raises:
      UserError: the folder holds a part of what belongs together, or cannot be written.
    """
    made = list[Path]()
    try:
        authority = _authority(folder, made)
        for host in hosts:
            _host(folder, host, days, authority, made)
    except OSError as error:
        raise UserError(f"{error.filename or folder}: {error.strerror or error}") from error
    return made


def _authority(folder: Path, made: list[Path]) -> Authority:
    """The folder's authority, made at the first call."""
    certificate_file, key_file = folder / CA, folder / CA_KEY
    if _both_are_there(certificate_file, key_file):
        return _read_authority(certificate_file, key_file)
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, _AUTHORITY)])
    days = 365 * _AUTHORITY_YEARS
    builder = _begun(name, name, key.public_key(), days)
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
    usage = x509.KeyUsage(
        digital_signature=False,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=True,
        crl_sign=True,
        encipher_only=False,
        decipher_only=False,
    )
    builder = builder.add_extension(usage, critical=True)
    identifier = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
    builder = builder.add_extension(identifier, critical=False)
    certificate = builder.sign(key, hashes.SHA256())
    made += _write(certificate_file, key_file, certificate, key)
    return Authority(certificate, key)


def _read_authority(certificate_file: Path, key_file: Path) -> Authority:
    try:
        certificate = x509.load_pem_x509_certificate(certificate_file.read_bytes())
        key = serialization.load_pem_private_key(key_file.read_bytes(), password=None)
    except ValueError as error:
        raise UserError(
            f"{certificate_file.parent}: {CA} or {CA_KEY} is broken ({error}); begin in a new "
            f"folder"
        ) from error
    is_own = certificate.public_key() == key.public_key()
    if not is_own or not isinstance(key, ec.EllipticCurvePrivateKey):
        raise UserError(f"{key_file} is not the key of {CA} beside it; begin in a new folder")
    return Authority(certificate, key)


def _host(folder: Path, host: str, days: int, authority: Authority, made: list[Path]) -> None:
    """A host's key and certificate, unless it has them."""
    certificate_file, key_file = folder / host / CERTIFICATE, folder / host / KEY
    if _both_are_there(certificate_file, key_file):
        return
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, host[:64])])
    issuer = authority.certificate.subject
    builder = _begun(name, issuer, key.public_key(), days)
    # A host that is spoken to by its own processes is also localhost.
    names = list(dict.fromkeys([host, "localhost", "127.0.0.1"]))
    alternatives = x509.SubjectAlternativeName([_general_name(one) for one in names])
    builder = builder.add_extension(alternatives, critical=False)
    builder = builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), True)
    both_ends = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
    builder = builder.add_extension(x509.ExtendedKeyUsage(both_ends), critical=False)
    signer = x509.AuthorityKeyIdentifier.from_issuer_public_key(authority.key.public_key())
    builder = builder.add_extension(signer, critical=False)
    certificate = builder.sign(authority.key, hashes.SHA256())
    made += _write(certificate_file, key_file, certificate, key)


def _begun(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, days: int
) -> x509.CertificateBuilder:
    """What every certificate says."""
    now = datetime.datetime.now(datetime.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _CLOCKS_APART)
        .not_valid_after(now + datetime.timedelta(days=days))
    )


def _both_are_there(certificate_file: Path, key_file: Path) -> bool:
    """Whether both are there; one without the other is refused."""
    there = [file for file in (certificate_file, key_file) if file.exists()]
    if len(there) == 1:
        raise UserError(
            f"{there[0]} is there without its other half; move it away, or begin in a new folder"
        )
    return bool(there)


def _write(
    certificate_file: Path,
    key_file: Path,
    certificate: x509.Certificate,
    key: ec.EllipticCurvePrivateKey,
) -> list[Path]:
    """Both files; the key can be read by its owner alone from its first byte on."""
    key_file.parent.mkdir(parents=True, exist_ok=True)
    text = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    descriptor = os.open(key_file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with open(descriptor, "wb") as file:
        file.write(text)
    certificate_file.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    return [certificate_file, key_file]


def _general_name(host: str) -> x509.GeneralName:
    """A host as a certificate names it."""
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _is_host(host: str) -> bool:
    """Whether it is an address or a name of a machine, and so also a folder's name."""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return len(host) <= 253 and _HOST_NAME.fullmatch(host) is not None
    return True


def _explain(folder: Path, host: str) -> None:
    """How the files are used, for the first host."""
    own = folder / host
    print(
        f"\nRay on {host}, before ray start and before snake-jax:\n"
        f"  export RAY_USE_TLS=1 RAY_TLS_CA_CERT={folder / CA} "
        f"RAY_TLS_SERVER_CERT={own / CERTIFICATE} RAY_TLS_SERVER_KEY={own / KEY}\n"
        f"A service on {host}:\n"
        f"  snake-jax serve --certfile={own / CERTIFICATE} --keyfile={own / KEY}"
    )
