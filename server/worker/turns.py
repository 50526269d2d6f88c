"""A line in which groups (peers) take turns, so that one that asks for much makes the others wait for one item only."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Iterator
from typing import Generic, TypeVar

T = TypeVar("T")


class Turns(Generic[T]):
    """Items that wait, by group. Within a group the first comes first; a group without items is forgotten."""

    def __init__(self) -> None:
        self._queues: OrderedDict[int, deque[T]] = OrderedDict()
        """The group that is next comes first."""

    def __len__(self) -> int:
        return sum(len(queue) for queue in self._queues.values())

    def __iter__(self) -> Iterator[T]:
        """Yield the items in the order of their turns."""
        for turn in range(max(map(len, self._queues.values()), default=0)):
            for queue in self._queues.values():
                if turn < len(queue):
                    yield queue[turn]

    def __contains__(self, group: int) -> bool:
        return group in self._queues

    def groups(self) -> list[tuple[int, deque[T]]]:
        """Return the groups in the order of their turns, each with its items."""
        return list(self._queues.items())

    def has_others(self, group: int) -> bool:
        """Return whether a group waits that is not this one."""
        return bool(self._queues.keys() - {group})

    def add(self, group: int, item: T) -> None:
        self._queues.setdefault(group, deque()).append(item)

    def take(self, group: int, item: T) -> None:
        """Take an item out; its group has had its turn."""
        self._queues.move_to_end(group)
        self.drop(group, item)

    def drop(self, group: int, item: T) -> None:
        """Take an item out that needs no turn any more."""
        queue = self._queues[group]
        queue.remove(item)
        if not queue:
            del self._queues[group]

    def take_next(self) -> T:
        """Take the next item out. Raises: StopIteration if there is none."""
        group, queue = next(iter(self._queues.items()))
        item = queue[0]
        self.take(group, item)
        return item
