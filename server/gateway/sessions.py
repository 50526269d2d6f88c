"""Sessions of peers: their open requests and unsent replies. Only this file and the gateway know a peer's identity."""

from __future__ import annotations

import itertools
import time
from collections import Counter, deque
from dataclasses import dataclass, field

import msgspec
import zmq

from protocol import codec, messages as m
from protocol.errors import BadRequest, Busy, RequestError, printable
from server.config import Config


class DuplicateId(BadRequest):
    """Error that is answered without an id: under that id, the open request will have its own last reply."""


@dataclass
class Done:
    """What one worker has done for one owner."""

    requests: int = 0
    prompt_tokens: int = 0
    new_tokens: int = 0
    busy_ms: float = 0.0

    def count(self, reply: m.AnyReply) -> None:
        """Count what a result's ledgers say."""
        if isinstance(reply, m.Scored):
            self.prompt_tokens += reply.computed
            self.busy_ms += reply.elapsed_ms
        elif isinstance(reply, m.Generated):
            for ledger in (reply.ledger, *(other.ledger for other in reply.others)):
                self.prompt_tokens += ledger.prompt_tokens
                self.new_tokens += ledger.new_tokens
                self.busy_ms += ledger.inference_ms


@dataclass(eq=False)
class Owner:
    """Owner of requests that are counted together: all connections of a key, or one connection without keys."""

    user: str
    number: int
    """Group of its requests for the workers, which share rows out fairly among owners."""
    open: int = 0
    tokens: int = 0
    allowance: float = 0.0
    """Number of requests that it may send at once (a token bucket)."""
    counted: float = field(default_factory=time.monotonic)
    requests: Counter[str] = field(default_factory=Counter)
    """Number of its requests by type."""
    errors: Counter[str] = field(default_factory=Counter)
    """Number of error replies to it, by code."""
    done: dict[str, Done] = field(default_factory=dict)
    """What each worker has done for it, by the worker's identity."""

    def count(self, rate: float) -> None:
        """Count a request. Raises: Busy if there were more than `rate` a second."""
        now = time.monotonic()
        self.allowance = min(rate, self.allowance + (now - self.counted) * rate)
        self.counted = now
        if self.allowance < 1:
            raise Busy(f"more than {rate:g} requests a second; send them more slowly")
        self.allowance -= 1


@dataclass(eq=False)
class Open:
    """Request without its last reply. `key` is the gateway's own id for it, unique among all peers."""

    key: int
    peer: bytes
    owner: Owner
    envelope: list[bytes]
    request: m.AnyRequest
    began: float = field(default_factory=time.monotonic)
    replica: str | None = None
    """Identity of the worker that has it, if any."""
    seq: int = 0
    cancelled: float = 0.0
    """Time when it was cancelled (monotonic); 0: it was not."""
    tokens: int = 0
    """Number of tokens that it counts for."""
    text_sent: bool = False
    """Whether some of its text, or of its texts' scores, has been sent."""
    moved: bool = False
    """Whether its worker was lost and another has it now."""

    @property
    def deadline(self) -> float:
        """Time of its deadline (monotonic); infinite: none."""
        return self.began + self.request.deadline_ms / 1000 if self.request.deadline_ms else float("inf")


@dataclass(eq=False)
class Session:
    """Connected peer."""

    owner: Owner
    open: dict[int, Open] = field(default_factory=dict)
    unsent: deque[list[bytes]] = field(default_factory=deque)
    unsent_bytes: int = 0
    stalled: float = 0.0
    """Time since when nothing could be sent to it (monotonic)."""


class Sessions:
    """Table of peers and their open requests. Used by the gateway's thread only."""

    def __init__(self, config: Config, socket: zmq.Socket[bytes]) -> None:
        self._config, self._socket = config, socket
        self._peers: dict[bytes, Session] = {}
        self._open: dict[int, Open] = {}
        self._held: dict[str, dict[int, Open]] = {}
        """Open requests of each worker, by key."""
        self._owners: dict[str, Owner] = {}
        """Owners by user, where there are keys: as many as were ever authorised.

        They outlive connections, or a new connection would begin without counts.
        """
        self._keys = itertools.count(1)
        self._numbers = itertools.count(1)
        self._ended_early: list[Open] = []
        self._of_fd: dict[int, set[bytes]] = {}
        """Peers by the descriptor of their connection, until it ends."""
        self._given_up: set[bytes] = set()
        """Peers that did not read their replies and are still connected."""
        self.outcomes: Counter[tuple[str, str]] = Counter()
        """Number of requests by type and outcome: ok, disconnected, or an error's code.

        The type of a message that never became a request is `refused`.
        """

    @property
    def peers(self) -> int:
        return len(self._peers)

    def peers_of(self, owner: Owner) -> int:
        """Return the number of an owner's connections."""
        return sum(session.owner is owner for session in self._peers.values())

    @property
    def errors(self) -> Counter[str]:
        """Number of error replies sent, by code."""
        errors: Counter[str] = Counter()
        for (_, outcome), count in self.outcomes.items():
            if outcome not in {"ok", "disconnected"}:
                errors[outcome] += count
        return errors

    @property
    def backlog(self) -> bool:
        """Whether some peer has replies that could not be sent yet."""
        return any(s.unsent for s in self._peers.values())

    @property
    def idle(self) -> bool:
        """Whether no request is open."""
        return not self._open

    def all_open(self) -> list[Open]:
        return list(self._open.values())

    def of_replica(self, identity: str) -> list[Open]:
        return list(self._held.get(identity, {}).values())

    def held(self, identity: str) -> int:
        """Return how many open requests a worker has."""
        return len(self._held.get(identity, ()))

    def shares(self, identity: str, owner: Owner) -> tuple[int, int]:
        """Return how many of a worker's open requests are an owner's, and the number of owners, this one included."""
        held = self._held.get(identity, {}).values()
        return sum(entry.owner is owner for entry in held), len({id(entry.owner) for entry in held} | {id(owner)})

    def assign(self, entry: Open, identity: str) -> None:
        """Note that a worker has a request from now on."""
        self._release(entry)
        entry.replica = identity
        self._held.setdefault(identity, {})[entry.key] = entry

    def by_key(self, key: int | None) -> Open | None:
        return self._open.get(key) if key is not None else None

    def of_peer(self, peer: bytes, request_id: int) -> Open | None:
        session = self._peers.get(peer)
        return session.open.get(request_id) if session else None

    def admit(self, peer: bytes, fd: int, envelope: list[bytes], request: m.AnyRequest, user: str) -> Open:
        """Register a request. Raises: BadRequest if its id is in use, Busy if its owner has too many."""
        session = self._peers.get(peer)
        if session is None:
            session = self._peers[peer] = Session(self._owner(user))
            self._of_fd.setdefault(fd, set()).add(peer)
        owner, config = session.owner, self._config
        tokens = request.cost
        if request.id in session.open:
            raise DuplicateId(f"request {request.id} is still open; give each a new id")
        owner.count(config.max_rate_per_peer)
        if isinstance(request, m.OfModel | m.Load | m.Task):  # control is answered at once, however much is open
            if owner.open >= config.max_open_per_peer:
                raise Busy(f"this client has {owner.open} open requests, which is the limit")
            if owner.tokens + tokens > config.max_tokens_per_peer:
                raise Busy(
                    f"this client's open requests have {owner.tokens} tokens to do; {tokens} more pass the limit of "
                    f"{config.max_tokens_per_peer}"
                )
        entry = Open(next(self._keys), peer, owner, envelope, request, tokens=tokens)
        session.open[request.id] = self._open[entry.key] = entry
        owner.open += 1
        owner.tokens += tokens
        return entry

    def _owner(self, user: str) -> Owner:
        if user and user in self._owners:
            return self._owners[user]
        owner = Owner(user, next(self._numbers), allowance=self._config.max_rate_per_peer)
        if user:
            self._owners[user] = owner
        return owner

    def of_users(self, users: set[str]) -> list[Open]:
        return [o for o in self._open.values() if o.owner.user in users]

    def reply(self, entry: Open, reply: m.AnyReply) -> None:
        """Number a reply and send it; a Result or Failure closes the request.

        A reply that cannot be packed costs this request alone, which ends with an error that says so.
        """
        if entry.key not in self._open:
            return
        last = isinstance(reply, m.Result | m.Failure)
        if isinstance(reply, m.Failure):
            reply = _printable(reply)
        try:
            frame = codec.encode(msgspec.structs.replace(reply, id=entry.request.id, seq=entry.seq))
        except BadRequest as e:
            self._ended_early.append(entry)
            refusal = f"the answer: {e}; ask for less in one request"
            self.reply(entry, m.Failure(id=None, code=e.code, message=refusal))
            return
        entry.seq += 1
        entry.text_sent = entry.text_sent or isinstance(reply, m.Tokens | m.ScoredText)
        if last:
            self.outcomes[codec.type_of(entry.request), reply.code if isinstance(reply, m.Failure) else "ok"] += 1
            if isinstance(reply, m.Failure):
                entry.owner.errors[reply.code] += 1
            self._forget(entry)
        self._send(entry.peer, entry.envelope, frame)

    def fail(self, entry: Open, error: RequestError) -> None:
        """Send an error as the last reply."""
        self.reply(entry, m.Failure(id=None, code=error.code, message=str(error)))

    def refuse(self, peer: bytes, envelope: list[bytes], failure: m.Failure) -> None:
        """Answer a message that never became a request."""
        self.outcomes["refused", failure.code] += 1
        if session := self._peers.get(peer):
            session.owner.errors[failure.code] += 1
        self._send(peer, envelope, codec.encode(_printable(failure)))

    def _send(self, peer: bytes, envelope: list[bytes], frame: bytes) -> None:
        """Send to a peer without waiting; what it cannot take now is kept for it, within a bound."""
        frames = [peer, *envelope, frame]
        session = self._peers.get(peer)
        if session and session.unsent:
            self._keep(peer, session, frames)
            return
        try:
            self._socket.send_multipart(frames, zmq.NOBLOCK)
        except zmq.Again:
            if session:
                self._keep(peer, session, frames)
        except zmq.ZMQError as e:
            if e.errno != zmq.EHOSTUNREACH:
                raise
            self.drop(peer)

    def flush(self) -> None:
        """Try again to send what could not be sent."""
        now = time.monotonic()
        for peer, session in list(self._peers.items()):
            if session.unsent and now > session.stalled + self._config.max_unsent_seconds:
                self._give_up(peer)
                continue
            while session.unsent:
                try:
                    self._socket.send_multipart(session.unsent[0], zmq.NOBLOCK)
                except zmq.Again:
                    break
                except zmq.ZMQError as e:
                    if e.errno != zmq.EHOSTUNREACH:
                        raise
                    self.drop(peer)
                    break
                session.unsent_bytes -= sum(map(len, session.unsent.popleft()))
                session.stalled = now

    def drop(self, peer: bytes) -> None:
        """Forget a peer that is gone; `take_ended_early` returns its open requests."""
        session = self._peers.pop(peer, None)
        if session:
            for entry in session.open.values():
                self._close(entry)
                self.outcomes[codec.type_of(entry.request), "disconnected"] += 1
                self._ended_early.append(entry)

    def drop_fd(self, fd: int) -> None:
        """Forget the peers of a connection that broke."""
        for peer in self._of_fd.pop(fd, ()):
            self.drop(peer)
            self._given_up.discard(peer)

    def has_given_up(self, peer: bytes) -> bool:
        """Return whether a peer's replies were dropped: it is not listened to until it connects again."""
        return peer in self._given_up

    def take_ended_early(self) -> list[Open]:
        """Return the requests that ended here since the last call: most are of vanished peers, and may still run."""
        early, self._ended_early = self._ended_early, []
        return early

    def _forget(self, entry: Open) -> None:
        self._close(entry)
        session = self._peers.get(entry.peer)
        if session:
            session.open.pop(entry.request.id, None)

    def _close(self, entry: Open) -> None:
        del self._open[entry.key]
        self._release(entry)
        entry.owner.open -= 1
        entry.owner.tokens -= entry.tokens

    def _release(self, entry: Open) -> None:
        held = self._held.get(entry.replica or "", {})
        held.pop(entry.key, None)
        if not held:
            self._held.pop(entry.replica or "", None)

    def _keep(self, peer: bytes, session: Session, frames: list[bytes]) -> None:
        if not session.unsent:
            session.stalled = time.monotonic()
        session.unsent.append(frames)
        session.unsent_bytes += sum(map(len, frames))
        if session.unsent_bytes > self._config.max_unsent_bytes or len(session.unsent) > self._config.max_unsent:
            self._give_up(peer)

    def _give_up(self, peer: bytes) -> None:
        self._given_up.add(peer)
        self.drop(peer)


def _printable(failure: m.Failure) -> m.Failure:
    """Return a failure whose message steers no terminal: it may repeat what a peer has sent."""
    return msgspec.structs.replace(failure, message=printable(failure.message))
