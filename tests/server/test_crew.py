"""The rule for the number of threads, on made-up machines whose cores other work takes."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest

from server.engines.crew import Crew

WORK = 0.004
"""Seconds of a step with one thread."""


class Machine:
    """A machine with a core for each thread. Where another process has one, too, each has it for half of the time."""

    def __init__(self, cores: int, speed: Callable[[int], float] = float) -> None:
        """`speed(n)` is what n threads do of what one does."""
        self.now = 0.0
        self.busy = 0
        self.cores = cores
        self.speed = speed
        self.numbers: list[tuple[float, int]] = []
        """For each step when it began, and its number of threads."""
        self.crew = Crew(cores, lambda: self.now)

    def best(self) -> float:
        """Return the time of a step with the best number of threads."""
        return min(self.step(n)[0] for n in range(1, self.cores + 1))

    def step(self, threads: int) -> tuple[float, list[float]]:
        """Return its time, and what each thread lost of it: all wait for one that has half a core."""
        late = max(0, threads - self.cores + self.busy)
        seconds = WORK / self.speed(threads) * (2 if late else 1)
        return seconds, [seconds / 2] * late + [0.0] * (self.cores - late)

    def run(self, seconds: float) -> float:
        """Let the crew take steps for so long; return its speed as a share of the best fixed number's."""
        began, until = self.now, self.now + seconds
        steps = 0
        while self.now < until:
            used = self.crew.used
            self.numbers.append((self.now, used))
            took, waits = self.step(used)
            self.now += took
            steps += 1
            if sum(waits) > 0 or self.crew.watching:
                self.crew.took(1, took, waits)
        return steps * self.best() / (self.now - began)

    def used(self, after: float) -> list[int]:
        return [number for at, number in self.numbers if at >= after]


@pytest.mark.parametrize("threads", [2, 8])
def test_a_quiet_machine_keeps_all_its_threads(threads: int) -> None:
    machine = Machine(threads)
    assert machine.run(10) == pytest.approx(1) and set(machine.used(0)) == {threads}


def test_a_moment_without_a_core_is_watched_for_a_while_and_forgotten() -> None:
    machine = Machine(2)
    machine.busy = 1
    machine.run(0.005)
    machine.busy = 0
    assert machine.crew.watching and machine.crew.used == 2
    machine.run(1)
    assert not machine.crew.watching and machine.crew.used == 2


@pytest.mark.parametrize(("threads", "busy", "want"), [(2, 1, 1), (8, 1, 7), (8, 3, 5), (8, 8, 8), (2, 2, 2)])
def test_as_many_threads_are_set_aside_as_makes_the_others_faster(threads: int, busy: int, want: int) -> None:
    machine = Machine(threads)
    machine.run(1)
    machine.busy = busy
    machine.run(1)
    machine.run(1)
    assert machine.run(10) > 0.97
    used = machine.used(2)
    assert used.count(want) > 0.9 * len(used) and min(used) >= 1


def test_threads_come_back_when_the_core_is_free() -> None:
    machine = Machine(8)
    machine.busy = 3
    machine.run(10)
    free, machine.busy = machine.now, 0
    machine.run(5)
    assert set(machine.used(free + 4)) == {8}
    assert machine.run(10) == pytest.approx(1)


def test_trials_are_twice_as_far_apart_each_time_up_to_two_seconds() -> None:
    machine = Machine(2, speed=lambda n: n**0.7)
    machine.busy = 1
    machine.run(20)
    used = machine.numbers[machine.used(0).index(1) :]
    trials = [at for (_, before), (at, number) in itertools.pairwise(used) if (before, number) == (1, 2)]
    gaps = [later - at for at, later in itertools.pairwise(trials)]
    assert gaps[:4] == pytest.approx([0.2, 0.4, 0.8, 1.6], abs=0.06) and gaps[4:] == pytest.approx([2] * 8, abs=0.06)
    lengths = [sum(at <= step < at + 0.05 and number == 2 for step, number in used) for at in trials]
    assert max(lengths) <= 6, "a trial that goes badly costs little more than a slice"


def test_a_thread_more_whose_first_steps_go_well_is_no_reason_to_try_again_soon() -> None:
    """A thread that has slept gets the core at once; what that costs it shows only after some steps."""

    class Lucky(Machine):
        rested = 0

        def step(self, threads: int) -> tuple[float, list[float]]:
            if threads == 1:
                self.rested = 2
            elif self.rested:
                self.rested -= 1
                return WORK / 2, [0.0, 0.0]
            return super().step(threads)

    machine = Lucky(2, speed=lambda n: n**0.7)
    machine.busy = 1
    machine.run(10)
    used = machine.used(3)
    assert used.count(1) > 0.9 * len(used)


def test_a_core_that_is_lost_in_part_is_kept_where_it_still_helps() -> None:
    class Window(Machine):
        """Another process takes a core for 5 of each 16 ms."""

        def step(self, threads: int) -> tuple[float, list[float]]:
            seconds = WORK / self.speed(threads)
            held = 0.004 if threads == 2 and self.now % 0.016 < 0.005 else 0
            return seconds + held, [0.0, held]

        def best(self) -> float:
            return WORK / 2 * 1.55  # one of 5.5 steps is held up by two of its own lengths

    machine = Window(2)
    assert machine.run(20) > 0.95
    assert machine.used(0).count(2) > 0.9 * len(machine.used(0))


def test_trials_of_long_steps_are_far_apart() -> None:
    """Each step is a prefill of 200 ms, of which others take a tenth: a trial of one thread costs most of a step."""
    machine = Machine(2)
    for _ in range(200):
        seconds = 0.4 if machine.crew.used == 1 else 0.22
        machine.now += seconds
        machine.crew.took(512, seconds, [0.0, 0.0] if machine.crew.used == 1 else [0.03, 0.03])
        machine.numbers.append((machine.now, machine.crew.used))
    used = machine.used(0)
    assert 2 <= used.count(1) <= 15


def test_where_memory_limits_a_step_fewer_threads_lose_little() -> None:
    """Half of a core lost costs two threads less than it brings; here a second one brings a quarter."""
    machine = Machine(2, speed=lambda n: 1 + 0.25 * (n - 1))
    machine.busy = 1
    assert machine.run(10) > 0.97


def test_kinds_of_steps_are_compared_with_their_own() -> None:
    """A trial in which the batch grows is not taken for one that went badly."""
    machine = Machine(2)
    machine.busy = 1
    crew = Crew(2, lambda: machine.now)
    used = []
    for i in range(2000):
        rows = 1 + i % 5
        used.append(crew.used)
        seconds, waits = machine.step(crew.used)
        machine.now += rows * seconds
        crew.took(rows, rows * seconds, [rows * wait for wait in waits])
    assert used[200:].count(1) > 0.9 * len(used[200:])


def test_many_kinds_take_no_memory() -> None:
    crew = Crew(2, lambda: 0.0)
    for kind in range(1000):
        crew.took(kind, 0.001, [0.0, 0.0])
    assert crew.used == 2 and len(crew._times.sums) <= 16
