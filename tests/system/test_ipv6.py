"""Two hosts that have IPv6 alone: what `--serve` prints is pasted on the other, and a name does as well."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.hosts import Hosts
from tests.test_run import ROOT, RUN
from tests.trap import WHY_NOT, possible

pytestmark = [pytest.mark.skipif(not possible(), reason=WHY_NOT), pytest.mark.alone]
SERVER, CLIENT = "fd5e:77::1", "fd5e:77::2"
SERVER_V4, CLIENT_V4 = "10.213.8.1", "10.213.8.2"
NAMES = f"{SERVER} served\n{SERVER} both\n192.0.2.77 both\n"
ADDRESSES = "import sys; sys.path.insert(0, 'scripts'); from own_addresses import *; print(own_addresses())"

CUT = """
import sys
from protocol import Client, Gpt2dError
with Client(sys.argv[1]) as client:
    client.ping(timeout=10)
    print("there", flush=True)
    sys.stdin.readline()
    for seconds in (5, 1):  # the second finds out what is known by then
        try:
            client.ping(timeout=seconds)
        except Gpt2dError as e:
            print(e, flush=True)
    sys.stdin.readline()
    client.ping(timeout=20)
    print("back", flush=True)
"""


class Pair(Hosts):
    """Hosts with the packages of these tests, on which names are known."""

    variables = {"PYTHONPATH": str(ROOT)}  # noqa: RUF012

    def __init__(self, folder: Path) -> None:
        run = (sys.executable, "-c", RUN, str(ROOT / "scripts" / "run.py"), sys.executable, str(folder))
        super().__init__(folder, f"{SERVER}/64", f"{CLIENT}/64", *run, "--serve")
        self.name(NAMES)

    def write(self, *lines: str) -> list[str]:
        """Write a text on the client's host by each of these connect lines, at once; return what is said."""
        words = ("--prompt", "x", "--max-new-tokens", "3")
        clients = [self.start(self.client, sys.executable, "-P", "-m", "client", line, *words) for line in lines]
        return [client.communicate(timeout=60)[0] for client in clients]

    def add_ipv4(self) -> None:
        """Give both hosts an address of the other family, too."""
        self.add_addresses(f"{SERVER_V4}/24", f"{CLIENT_V4}/24")


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    pair = Pair(tmp_path_factory.mktemp("pair"))
    yield pair
    pair.close()


def test_ipv6_alone_and_then_both_families(pair: Pair) -> None:
    """`--serve` prints addresses that can be reached, never the host's name, and listens on both families."""
    line = pair.line
    assert line.startswith(f"tcp://[{SERVER}]:5757#")
    names = [line.replace(f"[{SERVER}]", name) for name in ("served", "both")]
    *written, refused = pair.write(line, *names, "tcp://nowhere:5757")
    assert all("1 + 3 tokens" in said for said in written), written
    assert "the name in tcp://nowhere:5757 cannot be looked up" in refused
    pair.add_ipv4()
    assert pair.ask(pair.server, sys.executable, "-c", ADDRESSES) == (0, f"{[SERVER_V4, SERVER]}\n")
    (said,) = pair.write(line.replace(f"[{SERVER}]", SERVER_V4))
    assert "1 + 3 tokens" in said


def test_while_the_line_is_cut_that_is_what_is_said(pair: Pair) -> None:
    pair.add_ipv4()
    client = pair.start(pair.client, sys.executable, "-c", CUT, pair.line.replace(f"[{SERVER}]", SERVER_V4))
    assert client.stdin and client.stdout and client.stdout.readline() == "there\n"
    pair.plug("down")
    client.stdin.write("\n")
    client.stdin.flush()
    for _ in range(2):
        said = client.stdout.readline()
        assert "cut" in said and "nobody listens" not in said and "start" not in said, said
    pair.plug("up")
    plugged = time.monotonic()
    client.stdin.write("\n")
    client.stdin.flush()
    assert client.stdout.readline() == "back\n"
    assert time.monotonic() - plugged < 10
    client.communicate(timeout=10)
