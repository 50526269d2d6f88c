"""Only those who may: a daemon with keys, and everybody who is turned away by it, with what each side says."""

from __future__ import annotations

import contextlib
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import msgpack
import pytest
import zmq

from protocol import Client, codec, messages as m, sockets
from protocol.connection import Event
from protocol.errors import BadRequest, Busy, KeyRefused, NoServer, Unauthorised
from protocol.keys import Address, CurveKeys, Role, write_public, write_secret
from scripts.daemon import Daemon
from tests.conftest import answers, held, wait_for

LONG: dict[str, Any] = {"max_new_tokens": 1000, "ignore_eos": True}


@dataclass
class Keyed:
    """A daemon with keys, and those of an owner and a guest."""

    daemon: Daemon
    authorised: Path
    server: CurveKeys
    owner: CurveKeys
    guest: CurveKeys

    def client(self, key: CurveKeys) -> Client:
        return Client(self.daemon.endpoint, server_key=self.server.public, key=key.secret)

    def authorise(self, name: str, key: CurveKeys, role: Role) -> None:
        write_public(self.authorised / f"{name}.pub", key.public, role)


def keyed_daemon(folder: Path, cache: Path, *arguments: str) -> Keyed:
    server = CurveKeys.new()
    owner, guest = CurveKeys.new(), CurveKeys.new()
    write_secret(folder / "server.key", server)
    write_public(folder / "authorised" / "owner.pub", owner.public, "admin")
    write_public(folder / "authorised" / "guest.pub", guest.public, "generate")
    keys = ["--key", str(folder / "server.key"), "--authorised-keys", str(folder / "authorised")]
    return Keyed(
        Daemon(folder, "--cache-dir", str(cache), *keys, *arguments), folder / "authorised", server, owner, guest
    )


@pytest.fixture
def keyed(tmp_path: Path, cache: Path) -> Iterator[Keyed]:
    keyed = keyed_daemon(tmp_path, cache, "--preload", "demo")
    yield keyed
    if keyed.daemon.process.poll() is None:
        keyed.daemon.kill()


def test_a_key_finds_nothing_of_what_another_has_sent(keyed: Keyed) -> None:
    """Neither in the prefix cache nor by prompt lookup; its own prompts come back from the cache."""
    secret: dict[str, Any] = {"prompt_ids": list(range(300, 360)), "strategy": "greedy", "max_new_tokens": 30}
    with keyed.client(keyed.owner) as owner, keyed.client(keyed.guest) as guest:
        wait_for(lambda: any(worker.state == "ready" for worker in owner.ping().workers))
        first = owner.generate(**secret, n=2)
        guess = guest.generate(**secret)
        assert guess.ids == first.ids and guess.ledger.reused_tokens == 0
        continued = guest.generate(**{**secret, "prompt_ids": [*secret["prompt_ids"], *first.ids[:9], 7]})
        assert continued.ledger.reused_tokens == len(secret["prompt_ids"]) + 9, "which the guest itself has sent"
        part: dict[str, Any] = {"prompt_ids": [2000, *range(300, 308)], "strategy": "greedy", "max_new_tokens": 10}
        other, same = guest.generate(**part), owner.generate(**part)
        own = [*part["prompt_ids"], *other.ids]
        assert len(set(pairwise(own))) == len(own) - 1, "nothing in this text itself is there to be guessed from"
        assert other.ids == same.ids and other.ledger.guessed_tokens == 0
        assert owner.generate(**secret).ledger.reused_tokens == len(secret["prompt_ids"]) - 1


def test_what_one_key_has_sent_draws_no_other_key_to_its_replica(keyed: Keyed) -> None:
    """A guess goes to the replica that was idle longest, as does any prompt that nobody has sent."""
    writer = CurveKeys.new()
    keyed.authorise("writer", writer, "generate")
    with keyed.client(keyed.owner) as owner:
        owner.load("demo", replicas=2)
    with keyed.client(writer) as first, keyed.client(keyed.guest) as second:
        for i in range(3):
            secret = list(range(300 + 100 * i, 360 + 100 * i))
            home, written = _send(first, secret)
            assert _send(first, secret)[0] == home
            replica, guess = _send(second, [*secret, *written.ids])
            assert replica != home and guess.ledger.reused_tokens == 0
            replica, own = _send(first, secret)
            assert replica == home and own.ledger.reused_tokens == len(secret) - 1


def _send(client: Client, ids: list[int]) -> tuple[int, m.Generated]:
    """Send a prompt; return the number of the replica that answered, by the client's own counts, and the result."""
    before = {worker.replica: worker.requests for worker in client.stats().workers}
    result = client.generate(prompt_ids=ids, max_new_tokens=20, ignore_eos=True)
    (replica,) = [w.replica for w in client.stats().workers if w.requests != before[w.replica]]
    return replica, result


def test_keys_share_prefixes_where_the_server_says_so(tmp_path: Path, cache: Path) -> None:
    keyed = keyed_daemon(tmp_path, cache, "--preload", "demo", "--share-prefixes")
    prompt: dict[str, Any] = {"prompt_ids": list(range(300, 360)), "max_new_tokens": 2}
    with keyed.daemon, keyed.client(keyed.owner) as owner, keyed.client(keyed.guest) as guest:
        wait_for(lambda: any(worker.state == "ready" for worker in owner.ping().workers))
        owner.generate(**prompt)
        assert guest.generate(**prompt).ledger.reused_tokens == 59


def test_a_guest_is_told_the_counts_of_its_own_requests(keyed: Keyed) -> None:
    with keyed.client(keyed.owner) as owner, keyed.client(keyed.guest) as guest:
        wait_for(lambda: any(worker.state == "ready" for worker in owner.ping().workers))
        owner.generate(prompt_ids=[5, 6, 7], max_new_tokens=11, n=2)
        with pytest.raises(BadRequest):
            owner.generate(prompt_ids=[99_999])
        result = guest.generate(prompt_ids=[8, 9], max_new_tokens=4, ignore_eos=True)
        own, every = guest.stats(), owner.stats()
        control = {"hello", "ping"}  # which a client sends by itself
        assert {kind: n for kind, n in own.requests.items() if kind not in control} == {"generate": 1, "stats": 1}
        assert own.errors == {}
        (worker,) = own.workers
        assert (worker.requests, worker.prompt_tokens, worker.new_tokens) == (1, 2, 4)
        assert worker.busy_ms == result.ledger.inference_ms
        assert (own.peers, own.open_requests, every.peers) == (1, 1, 2)
        assert every.requests["generate"] == 3 and every.errors == {"bad_request": 1}


def test_a_key_and_its_role(keyed: Keyed) -> None:
    with keyed.client(keyed.owner) as owner, keyed.client(keyed.guest) as guest:
        assert owner.hello().role == "admin" and guest.hello().role == "generate"
        owner.load("demo")
        assert guest.generate("x", max_new_tokens=3).ids and guest.models() and guest.score("x y z").ids
        for forbidden in (
            lambda: guest.load("demo", precision="fp32"),
            lambda: guest.unload("demo"),
            lambda: guest.measure("demo"),
        ):
            with pytest.raises(Unauthorised, match="may generate, but not load, measure, calibrate or unload"):
                forbidden()
        assert guest.stats().errors == {"unauthorised": 3}
        owner.unload("demo")


def _refused(connect: Callable[[], Client], said: str, logged: str, daemon: Daemon) -> bool:
    """Be refused; return True once the log has it. It has at most one refusal of a kind a second."""
    began = time.monotonic()
    with connect() as client, pytest.raises(KeyRefused, match=said):
        client.ping(timeout=60)
    assert time.monotonic() - began < 30, "it is known before the time is over"
    return logged in daemon.logged()


def test_each_refusal_is_said_on_both_sides(keyed: Keyed) -> None:
    endpoint, server = keyed.daemon.endpoint, keyed.server.public
    stranger = CurveKeys.new()
    other = CurveKeys.new().public
    cases: list[tuple[Callable[[], Client], str, str]] = [
        (lambda: Client(endpoint), "wants a key", "a peer: it has no key"),
        (lambda: keyed.client(stranger), "refuses this key; its operator can authorise the key", "unknown key"),
        (
            lambda: Client(endpoint, server_key=other, key=keyed.owner.secret),
            "a different key than the one given",
            "has another server's key",
        ),
    ]
    for connect, said, logged in cases:
        wait_for(partial(_refused, connect, said, logged, keyed.daemon))
    with keyed.client(keyed.owner) as owner:
        assert owner.stats().peers == 1 and owner.stats().errors == {}, "nothing of all that was dispatched"
    keyed.daemon.kill()
    with keyed.client(keyed.owner) as late, pytest.raises(NoServer, match="nobody listens"):
        late.ping()
    secrets = [server, *(k.secret for k in (keyed.server, keyed.owner, stranger)), stranger.public, keyed.owner.public]
    assert not any(key in keyed.daemon.logged() for key in secrets)


def test_a_key_for_a_server_that_has_none(own_daemon: Daemon) -> None:
    def connect() -> Client:
        return Client(own_daemon.endpoint, server_key=CurveKeys.new().public, key=CurveKeys.new().secret)

    wait_for(partial(_refused, connect, "has no keys", "it has a key, and this server has none", own_daemon))


def test_without_a_handler_nobody_is_admitted(context: zmq.Context[zmq.Socket[bytes]]) -> None:
    """The answers come from the gateway's thread. Were there none, the socket would let nobody in."""
    server, own = CurveKeys.new(), CurveKeys.new()
    socket, monitor = sockets.gateway_socket(context, "tcp://127.0.0.1:*", server)
    address = Address(sockets.endpoint_of(socket), server.public, own)
    client, events = sockets.client_socket(context, address)
    sockets.connect(client, address.endpoint)
    kinds = set()

    def connected() -> bool:
        while event := sockets.next_event(events):
            kinds.add(event[0])
        return zmq.EVENT_CONNECTED in kinds

    wait_for(connected)
    assert socket.poll(500) == 0 and connected() and zmq.EVENT_HANDSHAKE_SUCCEEDED not in kinds
    sockets.close_monitored(client, events)
    sockets.close_monitored(socket, monitor)


@pytest.mark.alone
def test_a_revoked_key_loses_its_work_at_once_and_others_nothing(keyed: Keyed) -> None:
    with keyed.client(keyed.owner) as owner, keyed.client(keyed.guest) as guest:
        owner.load("demo")
        stream, other = guest.stream("x", **LONG, n=16), owner.stream("x", **LONG)
        next(stream), next(other)
        with held(*keyed.daemon.workers()):
            began = time.monotonic()
            (keyed.authorised / "guest.pub").unlink()
            with pytest.raises(Unauthorised, match="not authorised any more"):
                list(stream)
            assert time.monotonic() - began < 1
        with pytest.raises(Unauthorised, match="not authorised any more"):
            guest.ping()
        list(other)
        assert len(other.result.ids) == 1000
        wait_for(lambda: owner.ping().workers[0].running == 0)
        assert "revoked: guest" in keyed.daemon.logged()
        with keyed.client(keyed.guest) as again, pytest.raises(KeyRefused, match="refuses this key"):
            again.ping()


def test_a_refused_client_gets_in_by_itself_once_its_key_is_authorised(keyed: Keyed) -> None:
    late = CurveKeys.new()
    with keyed.client(late) as client:
        with pytest.raises(KeyRefused):
            client.ping()
        keyed.authorise("late", late, "generate")

        def gets_in() -> bool:
            try:
                return bool(client.ping())
            except KeyRefused:
                return False

        wait_for(gets_in)


def test_the_only_key_is_revoked_and_given_back(keyed: Keyed) -> None:
    """An empty folder admits nobody, and makes nobody more than he was."""
    with keyed.client(keyed.guest) as guest:
        assert guest.hello().role == "generate"
        for file in keyed.authorised.iterdir():
            file.unlink()
        wait_for(lambda: "revoked: guest, owner" in keyed.daemon.logged())
        for call in (
            guest.hello,
            guest.ping,
            lambda: guest.load("demo", precision="fp32"),
            lambda: guest.unload("demo"),
            lambda: guest.measure("demo"),
        ):
            with pytest.raises(Unauthorised, match="not authorised any more"):
                call()
        with keyed.client(keyed.owner) as owner, pytest.raises(KeyRefused):
            owner.ping()
        keyed.authorise("guest", keyed.guest, "generate")
        wait_for(lambda: "authorised: guest" in keyed.daemon.logged())
        assert guest.ping() and guest.hello().role == "generate"


def test_a_key_that_was_taken_back_stays_so(tmp_path: Path) -> None:
    """Making the same client's key again gives it another secret."""
    command = [
        sys.executable,
        "-m",
        "server.keygen",
        "--keys",
        str(tmp_path),
        "client",
        "owner",
        "--endpoint",
        "tcp://h:1",
    ]
    lines = [subprocess.run(command, capture_output=True, text=True, timeout=30, check=True).stdout for _ in range(2)]
    assert lines[0] == lines[1]
    (tmp_path / "authorised" / "owner.pub").unlink()
    again = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True).stdout
    assert again != lines[0] and (tmp_path / "authorised" / "owner.pub").exists()
    bad = subprocess.run([*command[:6], "other", "--endpoint", "nonsense"], capture_output=True, text=True, timeout=30)
    assert bad.returncode and not (tmp_path / "authorised" / "other.pub").exists()


def test_refusals_count_as_requests(keyed: Keyed) -> None:
    with keyed.client(keyed.guest) as guest:
        events: list[Event] = []
        for _ in range(3000):
            guest.connection.submit(m.Load(model="demo"), events.append, 30)
        wait_for(lambda: len(events) == 3000)
        kinds = {type(event).__name__ for event in events}
        assert kinds == {"Unauthorised", "Busy"}
        wait_for(lambda: answers(guest))


def test_a_role_can_change(keyed: Keyed) -> None:
    with keyed.client(keyed.guest) as guest:
        guest.ping()
        (keyed.authorised / "guest.pub").unlink()
        keyed.authorise("guest", keyed.guest, "admin")
        wait_for(lambda: "authorised: guest" in keyed.daemon.logged())
        assert guest.load("demo")


def test_a_restarted_server_with_keys_is_found_again(keyed: Keyed, tmp_path: Path, cache: Path) -> None:
    with keyed.client(keyed.owner) as owner:
        owner.load("demo")
        endpoint = keyed.daemon.endpoint
        keyed.daemon.kill()
        keys = ["--key", str(tmp_path / "server.key"), "--authorised-keys", str(keyed.authorised)]
        again = Daemon(tmp_path, "--cache-dir", str(cache), "--endpoint", endpoint, *keys)
        wait_for(lambda: answers(owner))
        again.kill()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (
            ["--endpoint", "tcp://0.0.0.0:0"],
            r"(?s)can be reached from other machines.*keygen'? server.*--serve.*ssh -L",
        ),
        (["--endpoint", "tcp://*:0"], "can be reached from other machines"),
        (["--endpoint", "tcp://[::]:0"], "can be reached from other machines"),
        (["--endpoint", "tcp://192.0.2.1:5757"], "can be reached from other machines"),
        (["--key", "KEY"], "must be given together"),
        (["--authorised-keys", "FOLDER"], "must be given together"),
        (["--key", "missing", "--authorised-keys", "FOLDER"], "the key missing cannot be read"),
        (["--key", "KEY", "--authorised-keys", "missing"], "the folder of authorised keys missing cannot be read"),
        (["--key", "WIDE", "--authorised-keys", "FOLDER"], "chmod 600"),
        (["--key", "KEY", "--authorised-keys", "OPEN"], "chmod 700"),
        (["--key", "PUBLIC", "--authorised-keys", "FOLDER"], "does not hold a key"),
    ],
)
def test_a_start_that_would_be_open_is_refused(tmp_path: Path, arguments: list[str], said: str) -> None:
    keys = CurveKeys.new()
    write_secret(tmp_path / "key", keys)
    write_secret(tmp_path / "wide", keys)
    (tmp_path / "wide").chmod(0o644)
    write_public(tmp_path / "authorised" / "a.pub", keys.public, "admin")
    write_public(tmp_path / "open" / "a.pub", keys.public, "admin")
    (tmp_path / "open").chmod(0o777)
    names = {"KEY": "key", "FOLDER": "authorised", "WIDE": "wide", "OPEN": "open", "PUBLIC": "authorised/a.pub"}
    words = [str(tmp_path / names[a]) if a in names else a for a in arguments]
    done = subprocess.run([sys.executable, "-P", "-m", "server", *words], capture_output=True, text=True, timeout=20)
    assert done.returncode and keys.secret not in done.stderr + done.stdout
    assert re.search(said, done.stderr), done.stderr


def test_with_keys_every_address_may_be_bound(tmp_path: Path, cache: Path) -> None:
    keyed = keyed_daemon(tmp_path, cache, "--endpoint", "tcp://0.0.0.0:0")
    port = keyed.daemon.endpoint.rpartition(":")[2]
    with Client(f"tcp://127.0.0.1:{port}", server_key=keyed.server.public, key=keyed.owner.secret) as client:
        assert client.ping()
    keyed.daemon.kill()


def test_the_connections_of_a_key_are_counted_together(keyed: Keyed) -> None:
    with keyed.client(keyed.owner) as owner, keyed.client(keyed.guest) as one, keyed.client(keyed.guest) as two:
        owner.load("demo")
        events: list[Event] = []
        with held(*keyed.daemon.workers()):
            for _ in range(32):
                for client in (one, two):
                    client.connection.submit(m.Generate(prompt="x", **LONG, n=16), events.append, 60)
            wait_for(lambda: owner.stats().open_requests == 65)
            with pytest.raises(Busy, match="64 open requests, which is the limit"):
                one.generate("x", wait=False)
        assert owner.generate("x", max_new_tokens=3).ids, "others are served"
    said = (
        r"asked to load demo, for owner\n.* generate demo/native/int8 length: prompt 1, new 3 [^\n]*, for owner\n",
        "refused a request of guest: this client has 64 open requests, which",
    )
    wait_for(lambda: all(re.search(each, keyed.daemon.logged(), re.DOTALL) for each in said))


def test_the_administrator_always_finds_a_place(tmp_path: Path, cache: Path) -> None:
    keyed = keyed_daemon(tmp_path, cache, "--max-open-per-worker", "2", "--preload", "demo")
    try:
        with contextlib.ExitStack() as stack:
            owner = stack.enter_context(keyed.client(keyed.owner))
            owner.load("demo")
            endless: dict[str, Any] = {**LONG, "n": 16, "wait": False}
            guests = []
            for name in "abcd":
                key = CurveKeys.new()
                keyed.authorise(name, key, "generate")
                guests.append(stack.enter_context(keyed.client(key)))
            wait_for(lambda: all(answers(guest) for guest in guests), 20)
            with held(*keyed.daemon.workers()):
                streams = [guests[0].stream("x", **endless) for _ in range(2)]
                wait_for(lambda: owner.stats().open_requests == 3)
                streams += [guest.stream("x", **endless) for guest in guests[1:3]]
                wait_for(lambda: owner.stats().open_requests == 5)
                with pytest.raises(Busy, match="2 requests to do"):
                    guests[3].generate("x", wait=False)
                own = owner.stream("x", max_new_tokens=2, wait=False)
                wait_for(lambda: owner.stats().open_requests == 6)
            assert list(own)
            for stream in streams:
                stream.close()
    finally:
        keyed.daemon.kill()


def test_the_tokens_of_a_peer_are_bounded(client: Client) -> None:
    ids = [1] * 60_000
    events: list[Event] = []
    for _ in range(17):
        client.connection.submit(m.Score(ids=ids, stride=1), events.append, 60)
    with pytest.raises(Busy, match=r"have \d+ tokens to do; 60000 more pass the limit of 1048576"):
        client.score(ids=ids, wait=False)
    for request in range(1, 19):
        client.connection.cancel(request)
    wait_for(lambda: client.stats().open_requests == 1, 20)
    assert client.score("x y z").ids


@pytest.mark.alone
def test_a_flood_is_busy_within_20_ms_and_others_go_on(
    own_daemon: Daemon, context: zmq.Context[zmq.Socket[bytes]]
) -> None:
    with Client(own_daemon.endpoint) as other:
        other.load("demo")

        def p99() -> float:
            times = []
            for _ in range(200):
                began = time.perf_counter()
                other.ping()
                times.append(time.perf_counter() - began)
                time.sleep(0.002)
            return sorted(times)[197]

        calm = p99()
        flooder = context.socket(zmq.DEALER)
        flooder.linger = 0
        flooder.connect(own_daemon.endpoint)
        over = threading.Event()
        sent_at: dict[int, float] = {}
        busy: list[tuple[str, float]] = []
        """The message of each refusal, and the seconds until it came."""

        def flood() -> None:
            number = 0
            while not over.is_set():
                for _ in range(20):  # 10,000 requests a second
                    number += 1
                    sent_at[number] = time.perf_counter()
                    flooder.send(msgpack.packb({"v": 1, "id": number, "type": "ping"}))
                while flooder.poll(2):
                    reply = msgpack.unpackb(flooder.recv())
                    if reply.get("code") == "busy":
                        busy.append((reply["message"], time.perf_counter() - sent_at[reply["id"]]))

        thread = threading.Thread(target=flood)
        thread.start()
        wait_for(lambda: len(busy) > 100)
        flooded = p99()
        over.set()
        thread.join()
        assert "more than 1000 requests a second" in busy[0][0]
        assert sorted(after for _, after in busy)[len(busy) * 99 // 100] < 0.020
        assert flooded < max(2 * calm, 0.010)
    flooder.close()


def test_a_request_at_the_limit_arrives_encrypted(keyed: Keyed) -> None:
    words = "the king " * 30_000
    around = len(codec.encode(m.Tokenize(id=1, text=words[:70_000]))) - 70_000
    frame = codec.encode(m.Tokenize(id=1, text=words[: codec.MAX_REQUEST_BYTES - around]))
    assert len(frame) == codec.MAX_REQUEST_BYTES
    with keyed.client(keyed.owner) as owner:
        owner.load("demo")
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    address = Address(keyed.daemon.endpoint, keyed.server.public, keyed.guest)
    socket, monitor = sockets.client_socket(context, address)
    sockets.connect(socket, address.endpoint)
    try:
        assert socket.poll(10_000, zmq.POLLOUT)
        socket.send(frame)
        assert socket.poll(20_000), "the connection was cut"
        assert isinstance(codec.decode_reply(socket.recv()), m.Tokenized)
    finally:
        sockets.close_monitored(socket, monitor)
        context.term()
