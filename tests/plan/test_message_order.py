"""No schedule that passes `check` can deadlock on its messages, though receives are posted in the sender's order.

A model of NCCL's rules, played for random valid schedules: a transfer begins when both ends have asked for it, and the
transfers of a stream come one after the other, in the order asked for at each end. Sends do not block the rank.
"""

from __future__ import annotations

from collections import Counter, defaultdict, deque

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_schedules import everything

from forgather_dsl.plan.actions import Action, from_rows, inputs
from forgather_dsl.plan.schedules import check

PLACEMENTS = {"line": (0, 1, 2), "V": (0, 1, 1, 0), "loop": (0, 1, 0, 1), "odd": (1, 0, 2, 0, 1)}


def results(action):
    """(stage, F or I or W, microbatch) of what an action makes."""
    return {(action.stage, result, action.microbatch) for result in ("IW" if action.kind == "B" else action.kind)}


def needed(action, num_stages):
    return {(stage, result, action.microbatch) for stage, result in inputs(action, num_stages)}


def random_schedule(placement, microbatches, draw):
    """Any order that `check` allows: at each turn one of the actions whose inputs are there."""
    kinds = [("F", *draw(st.sampled_from([("B",), ("I", "W")]))) for _ in placement]
    following = {(stage, kind): 0 for stage, own in enumerate(kinds) for kind in own}
    done, rows = set(), [[] for _ in range(max(placement) + 1)]
    while True:
        actions = [Action(*where, k) for where, k in following.items() if k < microbatches]
        ready = [action for action in actions if needed(action, len(placement)) <= done]
        if not ready:
            return from_rows("random", rows)
        action = draw(st.sampled_from(ready))
        rows[placement[action.stage]].append(action)
        following[action.stage, action.kind] += 1
        done |= results(action)


class Played:
    """`finished`: whether every action of `schedule` got its turn.

    A rank keeps `lookahead` receives posted from each other rank, more if it waits for a later one. `stream(rank, source,
    target)` names the stream of `rank` that a transfer is on.
    """

    def __init__(self, schedule, lookahead, stream):
        self.schedule, self.lookahead, self.stream = schedule, lookahead, stream
        self.lines = defaultdict(list)  # (source, target): messages in the order sent
        for source, row in enumerate(schedule.actions):
            for action in row:
                for target, message in self.sends(action):
                    self.lines[source, target].append(message)
        self.num_posted, self.read, self.arrived, self.done = Counter(), set(), set(), set()
        self.streams = defaultdict(deque)
        self.waiting = [deque(row) for row in schedule.actions]
        for rank in range(schedule.num_ranks):
            self.post(rank)
        while any([*map(self.run, range(schedule.num_ranks)), self.transfer()]):
            pass
        self.finished = not any(self.waiting)

    def sends(self, action):
        to = action.stage + {"F": 1, "W": -self.schedule.num_stages}.get(action.kind, -1)
        if 0 <= to < self.schedule.num_stages:
            source, target = (self.schedule.placement[stage] for stage in (action.stage, to))
            if source != target:
                yield target, next(one for one in results(action) if one[1] != "W")

    def ask(self, rank, source, target, message):
        self.streams[rank, self.stream(rank, source, target)].append((source, target, message))

    def post(self, target, wanted=None):
        for (source, to), line in self.lines.items():
            while to == target and self.num_posted[source, to] < len(line):
                under_way = set(line[: self.num_posted[source, to]]) - self.read
                if len(under_way) >= self.lookahead and (wanted not in line or wanted in under_way):
                    break
                self.ask(target, source, target, line[self.num_posted[source, to]])
                self.num_posted[source, to] += 1

    def transfer(self):
        """Carry out what is first at both its ends."""
        first = Counter(stream[0] for stream in self.streams.values() if stream)
        moved = [one for one, ends in first.items() if ends == 2]
        for stream in self.streams.values():
            if stream and stream[0] in moved:
                self.arrived.add(stream.popleft()[2])
        return bool(moved)

    def run(self, rank):
        """Run the rank's next action if its inputs are there."""
        if not self.waiting[rank]:
            return False
        action = self.waiting[rank][0]
        inner, remote = set(), set()
        for one in needed(action, self.schedule.num_stages):
            (inner if self.schedule.placement[one[0]] == rank else remote).add(one)
        for message in remote:
            self.post(rank, message)
        if not (inner <= self.done and remote <= self.arrived):
            return False
        self.read |= remote
        self.post(rank)
        self.done |= results(action)
        for target, message in self.sends(action):
            self.ask(rank, rank, target, message)
        self.waiting[rank].popleft()
        return True


def per_direction(rank, source, target):
    """A communicator for each pair of ranks and direction, as parallel/group.py makes them."""
    return source, target


def one_per_rank(rank, source, target):
    """What an eagerly connected group of NCCL does."""
    return "all"


@given(st.sampled_from(sorted(PLACEMENTS)), st.integers(1, 4), st.sampled_from((0, 1, 2, 3, 16)), st.data())
@settings(max_examples=80, deadline=None)
def test_a_valid_schedule_never_waits_for_ever_whatever_the_order_of_its_receives(shape, microbatches, lookahead, data):
    schedule = random_schedule(PLACEMENTS[shape], microbatches, data.draw)
    check(schedule)
    assert Played(schedule, lookahead, per_direction).finished


@pytest.mark.parametrize("name", everything())
def test_named_schedules_need_a_stream_for_each_direction(name):
    schedule = everything()[name](4, 8)
    assert Played(schedule, 2, per_direction).finished
    assert not Played(schedule, 2, one_per_rank).finished  # a receive posted early blocks the first send


def test_a_circle_of_results_is_a_deadlock_in_the_model_too():
    rows = [[Action(0, "F", 0), Action(0, "B", 0), Action(0, "F", 1), Action(0, "B", 1)]]
    rows.append([Action(1, "F", 0), Action(1, "F", 1), Action(1, "B", 0), Action(1, "B", 1)])
    assert not Played(from_rows("circle", rows), 2, per_direction).finished
