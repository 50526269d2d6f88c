"""Dispatch of requests to replicas, to another where one is lost, and of their replies back to the peers."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

import msgspec

from protocol import codec, messages as m
from protocol.errors import Busy, RequestError, WorkerDied
from server.config import Config
from server.gateway import faults, routing
from server.gateway.back import Back
from server.gateway.repeats import Ration
from server.gateway.replicas import Replica, Replicas
from server.gateway.sessions import Done, Open, Sessions
from server.link import FromWorker, Work

if TYPE_CHECKING:
    from server.gateway.metrics import Metrics  # Prometheus' library is loaded where it is asked for only

log = logging.getLogger("gpt2d")


class Dispatch:
    """Hands requests to workers and delivers their replies. Used by the gateway's thread only."""

    def __init__(
        self,
        config: Config,
        sessions: Sessions,
        replicas: Replicas,
        back: Back,
        administers: Callable[[str], bool],
        ration: Ration,
        metrics: Metrics | None = None,
    ) -> None:
        """Make it. `administers(user)`: whether a user is an administrator among others who are not."""
        self._config, self._metrics = config, metrics
        self._sessions, self._replicas = sessions, replicas
        self._back = back
        self._administers, self._ration = administers, ration

    def begin(self, entry: Open, request: m.OfModel) -> None:
        """Hand a request to the best replica that takes it.

        Raises: NotLoaded, BadRequest unless it means exactly one model; Busy, WorkerDied if no replica takes it.
        """
        self._hand_on(entry, request, self._replicas.serving(request))

    def begin_elsewhere(self, entry: Open, lost: Replica) -> bool:
        """Hand a request to another replica if none of its text was sent. Once: it may be what ended the first."""
        request, left_ms = entry.request, (entry.deadline - time.monotonic()) * 1000
        if entry.text_sent or entry.moved or entry.cancelled or left_ms < 1 or not isinstance(request, m.OfModel):
            return False
        entry.moved = True
        if request.deadline_ms:
            request = msgspec.structs.replace(request, deadline_ms=int(left_ms))
        others = [replica for replica in self._replicas.matching(*lost.way) if replica.serves]
        with contextlib.suppress(RequestError):
            if others:
                self._hand_on(entry, request, others)
                return True
        return False

    def cancel(self, entry: Open) -> None:
        """Tell whoever has a request to end it."""
        replica = self._replicas.by_identity(entry.replica) if entry.replica else None
        if replica:
            with contextlib.suppress(RequestError):  # one that cannot be reached is gone, or will be found stuck
                self._back.send(replica, m.Cancel(target=entry.key))

    def deliver(self, replica: Replica, message: FromWorker) -> None:
        """Pass a reply on to the peer that asked. A fault here ends that request alone, not the worker's others."""
        entry = self._sessions.by_key(message.id)
        if entry is None or entry.replica != replica.identity:
            return  # its peer is gone
        try:
            self._deliver(entry, replica, message)
        except Exception as e:  # noqa: BLE001 - whatever it is
            self.cancel(entry)
            self._sessions.fail(entry, faults.for_client(e))

    def _deliver(self, entry: Open, replica: Replica, message: FromWorker) -> None:
        if isinstance(message, m.Generated):
            self._note(replica, entry, message)
        if isinstance(message, m.Failure):
            what = f"{codec.type_of(entry.request)} {replica.name} failed: {message.code}"
            self._ration.info(entry.owner.user, what)
        if isinstance(message, m.Progress | m.Tokens | m.ScoredText | m.Generated | m.Tokenized | m.Scored | m.Failure):
            replica.used = time.monotonic()
            self._done(entry, replica).count(message)
            self._sessions.reply(entry, message)

    def _hand_on(self, entry: Open, request: m.OfModel, replicas: list[Replica]) -> None:
        """Try the replicas, best first. Raises: Busy, WorkerDied if none of them takes it."""
        free = [replica for replica in replicas if self._has_place(replica, entry)]
        refused: RequestError | None = None
        while free:
            replica = routing.choose(free, request, lambda r: self._sessions.held(r.identity), self._keeper(entry))
            free.remove(replica)
            try:
                group, owner = entry.owner.number, self._keeper(entry)
                self._back.send(replica, Work(id=entry.key, group=group, request=request, owner=owner))
            except (Busy, WorkerDied) as e:  # it is stuck or gone, and will be found so in a moment
                refused = e
                continue
            if self._config.log_prompts and isinstance(request, m.Generate) and request.prompt is not None:
                log.info("prompt %r", request.prompt)
            self._sessions.assign(entry, replica.identity)
            self._done(entry, replica).requests += 1
            replica.used = time.monotonic()
            return
        limit = self._config.max_open_per_worker
        raise refused or Busy(f"{replicas[0].name} has {limit} requests to do, which is the limit; try again later")

    def _has_place(self, replica: Replica, entry: Open) -> bool:
        """Return whether a worker takes another request of this owner.

        Where others have filled it, an owner has the share that it would have if all had the same, at least one place,
        as long as there are not twice as many as the limit; an administrator always has a place.
        """
        limit, held = self._config.max_open_per_worker, self._sessions.held(replica.identity)
        if held < limit or self._administers(entry.owner.user):
            return True
        own, owners = self._sessions.shares(replica.identity, entry.owner)
        return held < 2 * limit and own < max(1, limit // owners)

    def _done(self, entry: Open, replica: Replica) -> Done:
        """Return what a worker has done for a request's owner; workers that have gone are forgotten."""
        done = entry.owner.done
        if replica.identity not in done:
            for identity in [identity for identity in done if not self._replicas.by_identity(identity)]:
                del done[identity]
            done[replica.identity] = Done()
        return done[replica.identity]

    def _keeper(self, entry: Open) -> int:
        """Return who alone finds what is remembered of a request's prompt and text: its key's holder, or 0 for all."""
        return entry.owner.number if entry.owner.user and not self._config.share_prefixes else 0

    def _note(self, replica: Replica, entry: Open, result: m.Generated) -> None:
        ledger = result.ledger
        self._ration.info(
            entry.owner.user,
            f"generate {replica.name} {result.finish_reason}: "
            f"prompt {ledger.prompt_tokens}, new {ledger.new_tokens} tokens; "
            f"queue {ledger.queue_ms:.1f}, tokenise {ledger.tokenise_ms:.1f}, prefill {ledger.prefill_ms:.1f}, "
            f"decode {ledger.decode_ms:.1f} ms; {ledger.tokens_per_second:.1f} tokens/s",
        )
        if self._metrics:
            self._metrics.generated(replica.way, ledger)
        replica.known.learn(routing.blocks_of(entry.request, result, self._keeper(entry)))
