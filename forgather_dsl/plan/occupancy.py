"""What a rank holds over its actions of a schedule, and the most of it.

In: the schedule, bytes of one microbatch on each stage, bytes of a message. Out: `Occupancy`: the peak by kind, and the
states that the rank goes through. Only counts matter, not which microbatches: an action that finds the rank in a state
that it has been in before needs what it needed then. So a rank is walked through once, without bytes: what it holds are
sums of which each different one is kept, and bytes are put into those. Follows parallel/execution.py and
parallel/messages.py: receives posted ahead, gradients that were sent and not yet answered, tensors handed over between
stages of one rank.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

from .actions import Action, Schedule
from .memory import Held
from .stage_cost import StageCost

__all__ = ["LOOKAHEAD", "Occupancy", "lookahead", "peak_of"]

LOOKAHEAD = 2  # receives posted per pair of ranks before they are asked for (parallel/messages.py)
SMALL_LOOKAHEAD, SMALL = 16, 2**22  # but up to 16 while they hold no more than 4 MiB

_BEGINS = {"F": "F", "I": "early", "B": "gradients", "W": "gradients"}


def lookahead(message: int) -> int:
    """How many receives of `message` bytes are posted ahead of need. Where messages are small, waking up for each costs more
    than a microbatch: many at once halve what the engine takes per action (benchmarks/LOG.md).
    """
    return max(LOOKAHEAD, min(SMALL_LOOKAHEAD, SMALL // message)) if message else LOOKAHEAD


class _Message(NamedTuple):
    """What an action of stage `source` makes for stage `stage`: an activation from F, a gradient from B or I."""

    source: int
    stage: int
    forward: bool
    microbatch: int


class _Incoming:
    """Messages from one other rank: in the order they are sent, how many are posted, which of those are not taken."""

    def __init__(self, ahead: int, expected: Sequence[_Message]) -> None:
        self.ahead, self.expected = ahead, expected
        self.num_posted = 0
        self.posted: set[_Message] = set()

    def post(self, wanted: _Message | None = None) -> None:
        """Until `ahead` are under way and `wanted` is among them."""
        while self.num_posted < len(self.expected):
            if len(self.posted) >= self.ahead and (wanted is None or wanted in self.posted):
                return
            self.posted.add(self.expected[self.num_posted])
            self.num_posted += 1


class _Sum:
    """How often each thing is held whose bytes are put in later: (stage, number of a field of StageCost), "message", "buffer"."""

    __slots__ = ("terms",)

    def __init__(self, terms: dict[Any, int] | None = None) -> None:
        self.terms = terms or {}

    def plus(self, other: _Sum, times: int = 1) -> _Sum:
        """With `other` added `times` times."""
        if not times:
            return self
        terms = dict(self.terms)
        for thing, count in other.terms.items():
            terms[thing] = terms.get(thing, 0) + times * count
        return _Sum(terms)

    def key(self) -> frozenset[tuple[Any, int]]:
        """The same for equal sums."""
        return frozenset((thing, count) for thing, count in self.terms.items() if count)


NOTHING, MESSAGE, BUFFER = _Sum(), _Sum({"message": 1}), _Sum({"buffer": 1})
_FIELDS = range(len(StageCost._fields))


class Occupancy:
    """What one rank holds. `message` is the bytes of one, `tied` those of an embedding whose gradient the head sends."""

    def __init__(
        self,
        schedule: Schedule,
        rank: int,
        stages: Sequence[StageCost] | Mapping[int, StageCost],
        message: int = 0,
        tied: int = 0,
    ) -> None:
        leaving = any(any(stages[stage].leaving) for stage in schedule.stages_of(rank))
        walk = _walk(schedule, rank, lookahead(message), leaving)
        self.states = walk.states
        """(counts before the action and with its messages there, its kind and stage) of every action."""
        self.held: dict[Any, Held] = {"message": Held(activations=message), "buffer": Held(buffers=message)}
        own = schedule.stages_of(rank)
        for stage in (*own, *schedule.shards[rank : rank + 1]):
            self.held.update(((stage, field), stages[stage][field]) for field in _FIELDS)
        totals = {thing: sum(held) for thing, held in self.held.items()}
        most = max(walk.levels, key=lambda level: sum([count * totals[thing] for thing, count in level]))
        self.peak = self._bytes(most)
        self.now = self._bytes(walk.end)  # at the end of the step
        if tied and 0 in own and schedule.num_stages - 1 not in own:
            self.peak = max(self.peak, self.now.plus(Held(buffers=tied)), key=sum)

    def _bytes(self, level: Iterable[tuple[Any, int]]) -> Held:
        total = Held()
        for thing, count in level:
            total = total.plus(self.held[thing], count)
        return total


@lru_cache(maxsize=256)
def _walk(schedule: Schedule, rank: int, ahead: int, leaving: bool) -> _Walk:
    return _Walk(schedule, rank, ahead, leaving)


class _Walk:
    """The walk of one rank that posts `ahead` receives: `levels` are the different sums on the way, `end` the last. With
    `leaving` a microbatch's last layers are still on the device after its F.
    """

    def __init__(self, schedule: Schedule, rank: int, ahead: int, leaving: bool) -> None:
        self.schedule, self.rank, self.leaving = schedule, rank, leaving
        self._leaves: set[int] = set()  # stages whose last action but W was F
        self._costs: dict[int, Any] = {}
        self.now = NOTHING
        self.states: set[tuple] = set()
        self._levels: dict[frozenset[tuple[Any, int]], None] = {frozenset(): None}  # in the order of the walk
        self._alive: dict[tuple[str, int], int] = {}  # how many F without B or I, and I without W, per stage
        self._begun: set[tuple[str, int]] = (
            set()
        )  # stages that have run their first F, their first I, and that have their gradients
        self._unanswered: dict[int, list[int]] = {}  # per target, the position there that needs a gradient we sent
        self._source, self._needed, expected = _routes(schedule, rank)
        self._incoming = {source: _Incoming(ahead, messages) for source, messages in expected.items()}
        for incoming in self._incoming.values():
            incoming.post()
        for action in schedule.actions[rank]:
            self._run(action)
        self.levels, self.end = tuple(map(tuple, self._levels)), tuple(self.now.key())

    def _reach(self, held: _Sum) -> None:
        self._levels[held.key()] = None

    def _cost(self, stage: int) -> Any:
        """A StageCost whose fields are sums of themselves."""
        if stage not in self._costs:
            self._costs[stage] = StageCost(*(_Sum({(stage, field): 1}) for field in _FIELDS))  # type: ignore[arg-type]
        return self._costs[stage]

    def _base(self) -> _Sum:
        """What is held beside the action's own: between actions, and buffers."""
        posted = sum(len(incoming.posted) for incoming in self._incoming.values())
        unanswered = sum(map(len, self._unanswered.values()))
        return self.now.plus(BUFFER, posted).plus(MESSAGE, unanswered)

    def _receive(self, message: _Message) -> None:
        source, sent_at = self._source[message]
        incoming = self._incoming[source]
        incoming.post(message)
        self._reach(self._base())
        incoming.posted.remove(message)
        incoming.post()
        self._unanswered[source] = [at for at in self._unanswered.get(source, ()) if at > sent_at]

    def _run(self, action: Action) -> None:
        kind, stage = action.kind, action.stage
        before, needed = self._counts(), list(_needs(self.schedule, action))
        for message in needed:
            if message in self._source:
                self._receive(message)
        self.states.add((*before, self._counts(), kind, stage))
        local = any(message not in self._source for message in needed)
        first = (_BEGINS[kind], stage) not in self._begun
        extra, after = self._held(action, first, local)
        self._reach(self._base().plus(extra))
        self.now = self.now.plus(after)
        self._count(kind, stage)
        if self.leaving and kind != "W":
            (self._leaves.add if kind == "F" else self._leaves.discard)(stage)
        for made in _makes(self.schedule, action):
            if kind == "F" or stage in self.schedule.shards:
                continue
            if self._is_own(made.stage):
                self.now = self.now.plus(MESSAGE)  # until that stage's backward takes it
            elif made.stage not in self.schedule.shards:
                target = self.schedule.rank_of(made.stage)
                self._unanswered.setdefault(target, []).append(self._needed[made])

    def _held(self, action: Action, first: bool, local: bool) -> tuple[_Sum, _Sum]:
        """The most above what there is while an action runs, and what it adds for good. Its input is `local` when it is
        the output of a stage on this rank, which has counted it.
        """
        kind, stage = action.kind, action.stage
        cost = self._cost(stage)
        there = stage in self._leaves
        absent = self.leaving and not there
        if kind == "F":
            kept = cost.kept.plus(MESSAGE, -1) if local else cost.kept
            extra = cost.forward.plus(cost.lasting, first - 1).plus(cost.leaving, -there)
            return extra, kept.plus(cost.lasting, first).plus(cost.leaving, absent)
        gradients = cost.gradients if first and kind != "I" else NOTHING
        if kind == "W":
            if first and ("early", stage) in self._begun:
                gradients = gradients.plus(cost.early, -1)
            return cost.first_weights if first else cost.weights, gradients.plus(cost.owed, -1)
        handed_on = stage > 0 and self._is_own(stage - 1)  # its input is the output of a stage here, which stays
        handed_in = local and stage < self.schedule.num_stages - 1  # its output's gradient lay here
        kept = cost.kept.plus(MESSAGE, handed_in - handed_on)
        if kind == "I":
            early = cost.early if first and ("gradients", stage) not in self._begun else NOTHING
            after = cost.owed.plus(kept, -1).plus(early)
            return cost.inputs.plus(early).plus(cost.leaving, absent), after.plus(cost.leaving, -there)
        extra = (cost.first_backward if first else cost.backward).plus(cost.leaving, absent)
        return extra, gradients.plus(kept, -1).plus(cost.leaving, -there)

    def _is_own(self, stage: int) -> bool:
        return self.schedule.rank_of(stage) == self.rank

    def _counts(self) -> tuple:
        posted = tuple(sorted((source, len(i.posted)) for source, i in self._incoming.items()))
        unanswered = tuple(sorted((target, len(at)) for target, at in self._unanswered.items() if at))
        alive = tuple(sorted((key, count) for key, count in self._alive.items() if count))
        return posted, unanswered, alive, frozenset(self._begun), frozenset(self._leaves)

    def _count(self, kind: str, stage: int) -> None:
        changes = {"F": {"F": 1}, "B": {"F": -1}, "I": {"F": -1, "I": 1}, "W": {"I": -1}}[kind]
        for key, change in changes.items():
            self._alive[key, stage] = self._alive.get((key, stage), 0) + change
        self._begun.add((_BEGINS[kind], stage))


def _makes(schedule: Schedule, action: Action) -> Iterator[_Message]:
    for stage in schedule.outputs(action):
        yield _Message(action.stage, stage, action.kind == "F", action.microbatch)


def _needs(schedule: Schedule, action: Action) -> Iterator[_Message]:
    for source, result in schedule.inputs(action):
        if source != action.stage:
            yield _Message(source, action.stage, result == "F", action.microbatch)


@lru_cache(maxsize=256)
def _routes(
    schedule: Schedule, rank: int
) -> tuple[dict[_Message, tuple[int, int]], dict[_Message, int], dict[int, list[_Message]]]:
    """Of what other ranks send to `rank`: who, and at which of his actions; of every message the position of the action
    that takes it; and what each rank sends here, in order.
    """
    sources: dict[_Message, tuple[int, int]] = {}
    needed: dict[_Message, int] = {}
    expected: dict[int, list[_Message]] = {}
    for source, row in enumerate(schedule.actions):
        for at, action in enumerate(row):
            needed.update((message, at) for message in _needs(schedule, action))
            for made in _makes(schedule, action):
                if source != rank and schedule.rank_of(made.stage) == rank:
                    sources[made] = source, at
                    expected.setdefault(source, []).append(made)
    return sources, needed, expected


@lru_cache(maxsize=4096)  # a search for policies asks again and again, for ranks that it has not changed
def peak_of(schedule: Schedule, rank: int, own: tuple[tuple[int, StageCost], ...], message: int, tied: int) -> Held:
    """The most that a rank holds at a time, whose own stages, and shard of a head, cost this."""
    return Occupancy(schedule, rank, dict(own), message, tied).peak
