"""Times and bytes of every action that a pipeline could run, as flat tables: the inner loop of simulations and searches.

In: `Costs`, the rank of each stage, the number of microbatches. Actions are integers here, `(kind * stages + stage) *
microbatches + microbatch`; a row of them is a rank's order. Out: when each one runs, and the most bytes a row holds.
A rank runs its row in order; an action starts when its rank is free and its input is there. Sends do not block: a message
leaves when its action ends, waits for the link between its two ranks (one per direction), crosses it, and arrives.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from forgather_dsl.plan.actions import Action, Kind
from forgather_dsl.plan.costs import Costs

__all__ = ["KINDS", "Timing"]

KINDS: tuple[Kind, ...] = ("F", "I", "W", "B")
_NEVER = -1.0  # no message yet; times start at zero


class Timing:
    """The tables, indexed by an action's number; see the module's docstring."""

    def __init__(self, costs: Costs, placement: Sequence[int], microbatches: int) -> None:
        if costs.num_stages != len(placement) or len(costs.capacity) != max(placement) + 1:
            raise ValueError(
                f"costs of {costs.num_stages} stages on {len(costs.capacity)} ranks do not go with "
                f"{len(placement)} stages on {max(placement) + 1} ranks"
            )
        self.costs, self.placement, self.microbatches = costs, tuple(placement), microbatches
        self.stages, self.ranks = len(placement), max(placement) + 1
        self.seconds: list[float] = []
        self.enters: list[float] = []  # bytes from its start on
        self.works: list[float] = []  # bytes while it runs
        self.leaves: list[float] = []  # bytes from its end on, most often less than zero
        self.needs: list[int] = []  # the message that it waits for, or -1
        self.gives: list[int] = []  # the message that it makes, or -1
        self.link: list[int] = []  # that the message takes, or -1 on its own rank
        self.reader: list[int] = []  # the rank that the message goes to
        for kind in KINDS:
            for stage in range(self.stages):
                self._tabulate(kind, stage)

    def _tabulate(self, kind: Kind, stage: int) -> None:
        costs, count = self.costs, self.microbatches
        kept, owed = costs.kept[stage], costs.owed[stage]
        self.seconds += [costs.seconds(kind, stage)] * count
        self.enters += [kept if kind == "F" else 0.0] * count
        self.works += [costs.during(kind, stage)] * count
        self.leaves += [{"F": 0.0, "I": owed - kept, "W": -owed, "B": -kept}[kind]] * count
        last, here = self.stages - 1, self.placement[stage]
        # message s * count + k is the input of F, the one `stages * count` further on the output gradient of I and B
        needs = {"F": stage > 0, "W": False}.get(kind, stage < last)
        gives = {"F": stage < last, "W": False}.get(kind, stage > 0)
        other = stage + 1 if kind == "F" else stage - 1
        back = 0 if kind == "F" else self.stages * count
        self.needs += [back + stage * count + k if needs else -1 for k in range(count)]
        self.gives += [back + other * count + k if gives else -1 for k in range(count)]
        there = self.placement[other] if gives else here
        self.link += [here * self.ranks + there if there != here else -1] * count
        self.reader += [there] * count

    def number(self, action: Action) -> int:
        """The integer of an action."""
        return (KINDS.index(action.kind) * self.stages + action.stage) * self.microbatches + action.microbatch

    def action(self, number: int) -> Action:
        """The action of an integer."""
        kind_and_stage, microbatch = divmod(number, self.microbatches)
        kind, stage = divmod(kind_and_stage, self.stages)
        return Action(stage, KINDS[kind], microbatch)

    def run(self, rows: Sequence[Sequence[int]], starts: Sequence[list[float]] | None = None) -> list[float] | None:
        """When each rank is done; None when some wait for ever. `starts` gets when each action starts, up to there.

        Whether I comes after its F and W after its I on one rank is not looked at.
        """
        seconds, needs, gives, link, reader = self.seconds, self.needs, self.gives, self.link, self.reader
        latency, transfer = self.costs.latency, self.costs.transfer
        there = [_NEVER] * (2 * self.stages * self.microbatches)
        free = [0.0] * (self.ranks * self.ranks)
        now, waits_for = [0.0] * self.ranks, [-1] * self.ranks
        ready, left = list(range(self.ranks)), self.ranks
        rest = [iter(row) for row in rows]
        held_up = [-1] * self.ranks  # the action that waits
        while ready:
            rank = ready.pop()
            time, row = now[rank], rest[rank]
            number = held_up[rank] if held_up[rank] >= 0 else next(row, -1)
            held_up[rank] = -1
            while number >= 0:
                message = needs[number]
                if message >= 0:
                    arrival = there[message]
                    if arrival < 0:
                        waits_for[rank], held_up[rank] = message, number
                        break
                    if arrival > time:
                        time = arrival
                if starts is not None:
                    starts[rank].append(time)
                time += seconds[number]
                message = gives[number]
                if message >= 0:
                    line = link[number]
                    if line < 0:
                        there[message] = time
                    else:
                        sent = (free[line] if free[line] > time else time) + transfer
                        free[line] = sent
                        there[message] = sent + latency
                        if waits_for[reader[number]] == message:
                            waits_for[reader[number]] = -1
                            ready.append(reader[number])
                number = next(row, -1)
            else:
                left -= 1
            now[rank] = time
        return None if left else now

    def most_held(self, row: Iterable[int]) -> float:
        """Bytes at the moment when a rank that runs `row` holds the most."""
        enters, works, leaves = self.enters, self.works, self.leaves
        held = most = 0.0
        for number in row:
            held += enters[number]
            if held + works[number] > most:
                most = held + works[number]
            held += leaves[number]
        return most
