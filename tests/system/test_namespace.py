"""Two hosts: daemon and client in network namespaces of their own, joined by a cable (a veth pair) that can be cut."""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Iterator
from functools import partial

import pytest

from protocol.keys import Address, CurveKeys
from tests.conftest import wait_for
from tests.hosts import Hosts
from tests.test_readme import ROOT, TWO_MACHINES, blocks
from tests.trap import WHY_NOT, possible

pytestmark = [pytest.mark.skipif(not possible(), reason=WHY_NOT), pytest.mark.alone]
SERVER, CLIENT = "10.213.7.1", "10.213.7.2"
STREAM = """
import sys, time
from protocol import Client, Gpt2dError
with Client(sys.argv[1]) as client:
    stream = client.stream("x", max_new_tokens=1000, ignore_eos=True, n=16)
    print("began", len(next(stream).ids), flush=True)
    try:
        for piece in stream:
            pass
        print("whole", flush=True)
    except Gpt2dError as e:
        print("lost", type(e).__name__, flush=True)
    while True:
        try:
            client.ping(timeout=1)
            break
        except Gpt2dError as e:
            print("away", type(e).__name__, flush=True)
    print("back", len(client.generate("x", max_new_tokens=5, ignore_eos=True).ids), flush=True)
"""


def connect(hosts: Hosts, line: str) -> tuple[int, str]:
    """Paste the document's line on the client's host, with this connect line."""
    words = [line if "#" in word else word for word in blocks(TWO_MACHINES, "bash connect")[0].split()]
    return hosts.ask(hosts.client, *words, "--prompt", "Shall I", "--max-new-tokens", "9")


@pytest.fixture(scope="module")
def hosts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hosts]:
    if not (ROOT / ".venv").exists():
        pytest.skip("run.py would install everything into a new .venv")
    serve = blocks(TWO_MACHINES, "bash serve")[0].split()
    hosts = Hosts(tmp_path_factory.mktemp("hosts"), f"{SERVER}/24", f"{CLIENT}/24", *serve, SERVER)
    yield hosts
    hosts.close()


def test_namespace_the_two_lines_of_the_document(hosts: Hosts) -> None:
    assert f"tcp://{SERVER}:5757#" in hosts.line
    code, said = connect(hosts, hosts.line)
    assert code == 0 and re.search(r"\[inference \d+ ms: .* 2 \+ 9 tokens", said), said
    assert re.search(rf"next time `.*gpt2d-client'? {SERVER}` is enough", said)
    code, said = hosts.ask(
        hosts.client, "python3", "scripts/run.py", "--connect", SERVER, "--prompt", "x", "--max-new-tokens", "3"
    )
    assert code == 0 and "1 + 3 tokens" in said, said


def _has_logged(hosts: Hosts, text: str) -> bool:
    return text in hosts.log


def test_namespace_strangers_get_nowhere(hosts: Hosts) -> None:
    address = Address.parse(hosts.line)
    stranger = Address(address.endpoint, address.server_key, CurveKeys.new())
    other_server = Address(address.endpoint, CurveKeys.new().public, address.key)
    last = 0.0
    for line, said, logged in (
        (stranger.line(), "refuses this key", f"refused {CLIENT}: unknown key"),
        (other_server.line(), "has a different key than the one given", "it has another server's key"),
        (address.endpoint, "wants a key", "it has no key"),
    ):
        time.sleep(max(0.0, last + 1.1 - time.monotonic()))  # refusals are logged once a second
        code, printed = hosts.ask(hosts.client, "python3", "scripts/run.py", "--connect", line, "--prompt", "x")
        assert code == 1 and said in printed and "kept" not in printed, printed
        wait_for(partial(_has_logged, hosts, logged))
        last = time.monotonic()
    assert "unauthorised" not in hosts.log and "generate demo/native/int8 length: prompt 1, new 25" not in hosts.log


def test_namespace_a_cable_that_is_cut_and_plugged_in_again(hosts: Hosts) -> None:
    client = hosts.start(hosts.client, sys.executable, "-c", STREAM, hosts.line)
    assert client.stdout
    assert client.stdout.readline().startswith("began")
    hosts.plug("down")
    cut = time.monotonic()
    assert client.stdout.readline() in {"lost ServerStuck\n", "lost ConnectionLost\n"}
    assert time.monotonic() - cut < 7
    time.sleep(max(0.0, cut + 8 - time.monotonic()))
    hosts.plug("up")
    plugged = time.monotonic()
    while (line := client.stdout.readline()).startswith("away"):
        pass
    assert line == "back 5\n" and time.monotonic() - plugged < 5
    client.wait(10)
