"""The authority and the certificate: made once, kept, renewed, and good for real TLS."""

from __future__ import annotations

import asyncio
import socket
import ssl
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization

from ramet.errors import DamagedError, UsageError
from ramet.host import certificates as certificates_module
from ramet.host.certificates import Certificate, Certificates, host_names

NOW = datetime.now(UTC)


def loaded(path: Path) -> x509.Certificate:
    return x509.load_pem_x509_certificate(path.read_bytes())


async def handshake(server: Certificate, client: ssl.SSLContext, name: str) -> str | None:
    """The TLS version of a connection; SSLError when one side refuses."""
    seen: asyncio.Future[str | None] = asyncio.get_running_loop().create_future()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.close()

    listener = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=server.context())
    port = listener.sockets[0].getsockname()[1]
    try:
        _, writer = await asyncio.open_connection("127.0.0.1", port, ssl=client, server_hostname=name)
        seen.set_result(writer.get_extra_info("ssl_object").version())
        writer.close()
        return await seen
    finally:
        listener.close()
        await listener.wait_closed()


async def test_clients_that_trust_the_authority_trust_the_server(tmp_path: Path) -> None:
    made = Certificates(tmp_path / "tls").prepare()
    assert made.ca_file is not None
    client = ssl.create_default_context(cafile=made.ca_file)
    for name in ("127.0.0.1", "localhost", socket.gethostname()):
        assert await handshake(made, client, name) == "TLSv1.3"
    with pytest.raises(ssl.SSLCertVerificationError):
        await handshake(made, ssl.create_default_context(), "localhost")
    with pytest.raises(ssl.SSLCertVerificationError):
        await handshake(made, client, "elsewhere.example")


def test_keys_are_the_daemons_alone(tmp_path: Path) -> None:
    Certificates(tmp_path / "tls").prepare()
    modes = {path.name: path.stat().st_mode & 0o777 for path in (tmp_path / "tls").iterdir()}
    assert modes == {"ca.key": 0o600, "server.key": 0o600, "ca.pem": 0o644, "server.pem": 0o644}


def test_what_was_made_is_kept(tmp_path: Path) -> None:
    first = Certificates(tmp_path / "tls").prepare(now=NOW)
    assert Certificates(tmp_path / "tls").prepare(now=NOW + timedelta(days=300)) == first
    assert len(first.fingerprint.split(":")) == 32


def test_it_is_renewed_before_its_end_by_the_same_authority(tmp_path: Path) -> None:
    first = Certificates(tmp_path / "tls").prepare(now=NOW)
    authority = loaded(tmp_path / "tls" / "ca.pem")
    second = Certificates(tmp_path / "tls").prepare(now=NOW + timedelta(days=370))
    assert second.fingerprint != first.fingerprint
    assert second.not_after > first.not_after
    assert loaded(tmp_path / "tls" / "ca.pem") == authority
    Certificates(tmp_path / "tls").prepare(now=NOW + timedelta(days=3300))
    assert loaded(tmp_path / "tls" / "ca.pem") != authority  # it would end before what it signs


def test_it_is_made_anew_for_a_new_address(tmp_path: Path) -> None:
    first = Certificates(tmp_path / "tls").prepare()
    second = Certificates(tmp_path / "tls").prepare(["192.0.2.77", "0.0.0.0"])
    assert "192.0.2.77" in second.names
    assert "0.0.0.0" not in second.names
    assert second.fingerprint != first.fingerprint


@pytest.mark.parametrize("name", ["server.pem", "server.key"])
def test_a_damaged_file_of_the_servers_is_replaced(tmp_path: Path, name: str) -> None:
    Certificates(tmp_path / "tls").prepare()
    (tmp_path / "tls" / name).write_text("nonsense")
    made = Certificates(tmp_path / "tls").prepare()
    made.context()
    loaded(made.file).verify_directly_issued_by(loaded(tmp_path / "tls" / "ca.pem"))


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


@pytest.mark.parametrize(
    ("name", "how"),
    [(name, how) for name in ("ca.pem", "ca.key") for how in ("nonsense", "", "other", "folder")]
    + [("ca.key", "encrypted"), ("ca.key", "gone")],
)
def test_a_damaged_authority_is_refused_and_nothing_replaces_it(tmp_path: Path, name: str, how: str) -> None:
    tls = tmp_path / "tls"
    Certificates(tls).prepare()
    before = contents(tls)
    spoil(tls / name, how, tmp_path)
    spoiled = contents(tls)
    for _ in range(2):
        with pytest.raises(DamagedError, match="cannot be used") as caught:
            Certificates(tls).prepare(["192.0.2.77"])
        assert "from a copy" in str(caught.value)
        assert contents(tls) == spoiled
    if how == "folder":
        (tls / name).rmdir()
    (tls / name).write_bytes(before[name])  # back from a copy
    Certificates(tls).prepare()
    assert contents(tls) == before


def spoil(path: Path, how: str, elsewhere: Path) -> None:
    if how == "other":
        Certificates(elsewhere / "other").prepare()
        path.write_bytes((elsewhere / "other" / path.name).read_bytes())
    elif how == "encrypted":
        key = serialization.load_pem_private_key(path.read_bytes(), None)
        path.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.BestAvailableEncryption(b"secret"),
            )
        )
    elif how in ("folder", "gone"):
        path.unlink()
        if how == "folder":
            path.mkdir()
    else:
        path.write_text(how)


@pytest.mark.parametrize("left", [(), ("ca.key",), ("server.pem", "server.key"), ("ca.key", "server.pem")])
def test_where_there_is_no_authority_one_is_made(tmp_path: Path, left: tuple[str, ...]) -> None:
    tls = tmp_path / "tls"
    first = Certificates(tls).prepare()
    for name in set(contents(tls)) - set(left):
        (tls / name).unlink()
    made = Certificates(tls).prepare()
    made.context()
    assert made.fingerprint != first.fingerprint
    loaded(made.file).verify_directly_issued_by(loaded(tls / "ca.pem"))


@pytest.mark.parametrize("done", [0, 1])
def test_a_renewal_of_the_authority_that_is_cut_short_is_done_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, done: int
) -> None:
    tls, writes = tmp_path / "tls", 0
    Certificates(tls).prepare(now=NOW)
    write = certificates_module._write

    def cut(path: Path, data: bytes, mode: int) -> None:
        nonlocal writes
        writes += 1
        if writes > done:
            raise OSError(28, "No space left on device")
        write(path, data, mode)

    late = NOW + timedelta(days=3300)
    with monkeypatch.context() as patched:
        patched.setattr(certificates_module, "_write", cut)
        with pytest.raises(OSError, match="No space"):
            Certificates(tls).prepare(now=late)
    made = Certificates(tls).prepare(now=late)
    loaded(made.file).verify_directly_issued_by(loaded(tls / "ca.pem"))
    made.context()


def test_the_users_own_is_used_as_it_is(tmp_path: Path) -> None:
    other = Certificates(tmp_path / "other").prepare()
    own = Certificates(tmp_path / "tls", (other.file, other.key_file)).prepare(["192.0.2.1"])
    assert own.fingerprint == other.fingerprint
    assert own.ca_file is None
    assert not (tmp_path / "tls").exists()


def test_a_users_certificate_that_does_not_fit_is_told(tmp_path: Path) -> None:
    one, two = Certificates(tmp_path / "1").prepare(), Certificates(tmp_path / "2").prepare()
    with pytest.raises(UsageError, match="cannot be used together"):
        Certificates(tmp_path / "tls", (one.file, two.key_file)).prepare().context()
    with pytest.raises(UsageError, match="cannot be read: No such file"):
        Certificates(tmp_path / "tls", (tmp_path / "none", one.key_file)).prepare()
    (tmp_path / "bad").write_text("nonsense")
    with pytest.raises(UsageError, match="cannot be read"):
        Certificates(tmp_path / "tls", (tmp_path / "bad", one.key_file)).prepare()


def test_the_host_is_called_by_its_names_and_addresses() -> None:
    names = host_names(["0.0.0.0", "192.0.2.5"])
    assert names[0] == socket.gethostname().lower()
    assert {"localhost", "127.0.0.1", "::1", "192.0.2.5"} <= set(names)
    assert len(names) == len(set(names)) <= 64
