"""Keys as text, in files, and in the one line that carries them."""

from __future__ import annotations

import os
import stat
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, strategies as st

from protocol import Client
from protocol.keys import (
    Address,
    CurveKeys,
    KeyFileError,
    check_key,
    read_public,
    read_secret,
    write_public,
    write_secret,
)

SERVER, OWN = CurveKeys.new(), CurveKeys.new()
posix = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such modes")


def test_a_connect_line_carries_an_address_and_two_keys() -> None:
    line = Address("tcp://host:5757", SERVER.public, OWN).line()
    assert Address.parse(line) == Address("tcp://host:5757", SERVER.public, OWN)
    assert line.isascii() and not set(line) - set(
        "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_:/.#"
    )
    assert Address.parse("tcp://host:5757") == Address("tcp://host:5757")
    other = CurveKeys.new()
    assert Address.parse(line, other.public, other.secret).key == other, "keys given apart come first"


@pytest.mark.parametrize("written", ["[::1]:5757", "tcp://[::1]:5757", "tcp://[fd00::1]:5757", "[fe80::1%eth0]:5757"])
def test_an_ipv6_address_is_one_as_any_other(written: str) -> None:
    address = Address.parse(written)
    assert address.endpoint == f"tcp://{written.removeprefix('tcp://')}"
    with_keys = Address(address.endpoint, CurveKeys.new().public, CurveKeys.new())
    assert Address.parse(with_keys.line()) == with_keys


@pytest.mark.parametrize("cut", [1, 20, 43, 44, 45, 60])
def test_a_line_that_was_cut_is_said_without_its_keys(cut: int) -> None:
    line = Address("tcp://host:5757", SERVER.public, OWN).line()
    with pytest.raises(ValueError, match=r"cut|damaged|whole") as error:
        Address.parse(line[:-cut])
    assert line[20:40] not in str(error.value) and line[-60:-50] not in str(error.value)
    with pytest.raises(ValueError, match=r"cut|damaged|whole"):
        Client(line[:-cut])


@given(st.text(max_size=60))
def test_nothing_else_is_a_key(text: str) -> None:
    with pytest.raises(ValueError, match="not a valid key"):
        check_key(text + " ")
    with pytest.raises(ValueError) as error:
        Address.parse(f"tcp://h:1#{text}")
    assert len(text) < 8 or text not in str(error.value)


@pytest.mark.parametrize("given", [None, 5, b"tcp://h:1"])
def test_what_is_no_text_is_no_endpoint_and_no_key(given: Any) -> None:
    """As a variable that is not set, or keys as pyzmq has them."""
    with pytest.raises(ValueError, match="an endpoint must be a text like"):
        Address.parse(given)
    with pytest.raises(ValueError, match="not a valid key"):
        check_key(given)


def test_no_error_repeats_a_secret() -> None:
    line = Address("tcp://host:5757", SERVER.public, OWN).line()
    for wrong in (line.replace("#", ""), line.replace("#", " "), line.partition("#")[2], "#" * 40, "tcp://["):
        with pytest.raises(ValueError, match="not an endpoint") as error:
            Address.parse(wrong)
        assert line[-30:] not in str(error.value)
    with pytest.raises(ValueError, match="not a valid key"):
        check_key("#" * 40)


def test_keys_come_in_pairs() -> None:
    for server_key, key in ((SERVER.public, None), (None, OWN.secret)):
        with pytest.raises(ValueError, match="together"):
            Client("tcp://127.0.0.1:1", server_key=server_key, key=key)
    assert CurveKeys.of(OWN.secret) == OWN
    assert OWN.secret not in repr(OWN) + repr(Address("tcp://h:1", SERVER.public, OWN))


def test_files_of_keys(tmp_path: Path) -> None:
    secret, public = tmp_path / "a.key", tmp_path / "a.pub"
    write_secret(secret, OWN)
    write_public(public, OWN.public, "generate")
    assert read_secret(secret) == OWN and read_public(public) == ("generate", OWN.public)
    with pytest.raises(FileExistsError):
        write_secret(secret, SERVER)
    assert os.name != "posix" or [stat.S_IMODE(f.stat().st_mode) for f in (secret, public)] == [0o600, 0o600]


@posix
@pytest.mark.parametrize("mode", [0o640, 0o604, 0o666, 0o622])
def test_a_key_that_others_could_reach_is_refused(tmp_path: Path, mode: int) -> None:
    secret, public = tmp_path / "a.key", tmp_path / "a.pub"
    write_secret(secret, OWN)
    write_public(public, OWN.public, "admin")
    for file in (secret, public):
        file.chmod(mode)
    with pytest.raises(KeyFileError, match="chmod 600"):
        read_secret(secret)
    if mode & 0o022:
        with pytest.raises(KeyFileError, match="chmod 600"):
            read_public(public)
    else:
        assert read_public(public) == ("admin", OWN.public), "a public key may be read by all"


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff\xfe",
        b"admin",
        pytest.param(b"owner " + OWN.public.encode(), id="owner"),  # a key of this process: two know no test by it
        b"admin " + b"x" * 39,
        b"{}",
    ],
)
def test_a_file_that_holds_no_key_is_said_by_name(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "a.key"
    file.write_bytes(content)
    file.chmod(0o600)
    for read in (read_secret, read_public):
        with pytest.raises(KeyFileError, match=r"a\.key") as error:
            read(file)
        assert OWN.public not in str(error.value)
    with pytest.raises(KeyFileError, match="cannot be read"):
        read_secret(tmp_path / "missing")
