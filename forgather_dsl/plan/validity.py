"""Whether a schedule can be run at all, and gives the same sums as any other: everything wrong with it, at once.

In: a `Schedule`. Out: a list of problems, each naming action and rank, or one ValueError with all of them.
Sends never block, and receives are posted in the sender's order (parallel/messages.py does both). Then nothing but a
circle of results can deadlock, whatever the order of receives: what is waited for has been sent once its action has
run, and the messages of that pair before it were sent, and their receives posted, earlier.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from forgather_dsl.plan.actions import Action, Schedule

__all__ = ["check", "problems"]

SHOWN = 3  # problems of each kind that are told in full
RESULTS = {"F": "F", "B": "IW", "I": "I", "W": "W"}
NAMES = {"F": "forward", "I": "input gradient", "W": "weight gradient"}


def check(schedule: Schedule, memory_cap: float = float("inf")) -> None:
    """Raise ValueError, with everything that `problems` finds, unless that is nothing."""
    found = problems(schedule, memory_cap)
    if found:
        raise ValueError(f"schedule {schedule.name}: " + "; ".join(found))


def problems(schedule: Schedule, memory_cap: float = float("inf")) -> list[str]:
    """Everything wrong: of each kind the first few, and how many more.

    Every stage runs F and either B or I and W once per microbatch, on its own rank. The F, the I or B, and the W or B of
    a stage each come in microbatch order, since a sum of gradients has to be taken in one order whatever the schedule.
    A shard of the head runs F and W. Every action gets its turn. No rank holds more than `memory_cap` (stage, microbatch) pairs from F to W.
    """
    kinds = (_misplaced, _incomplete, _disordered, _stuck)
    found = [problem for kind in kinds for problem in _few(list(kind(schedule)))]
    return found + _few(list(_too_full(schedule, memory_cap)))


def _few(found: Sequence[str]) -> list[str]:
    more = len(found) - SHOWN
    return [*found[:SHOWN], *([f"and {more} more of this kind"] if more > 0 else [])]


def _stages(schedule: Schedule) -> int:
    return schedule.num_stages + schedule.num_shards


def _known(schedule: Schedule) -> Iterator[tuple[int, Action]]:
    """(rank, action) of those that are about a stage and microbatch of the schedule."""
    for rank, row in enumerate(schedule.actions):
        for action in row:
            if 0 <= action.stage < _stages(schedule) and 0 <= action.microbatch < schedule.num_microbatches:
                yield rank, action


def _misplaced(schedule: Schedule) -> Iterator[str]:
    sizes = f"{_stages(schedule)} stages x {schedule.num_microbatches} microbatches"
    known = set(_known(schedule))
    for rank, row in enumerate(schedule.actions):
        for action in row:
            if (rank, action) not in known:
                yield f"{action} on rank {rank} is outside {sizes}"
            elif schedule.rank_of(action.stage) != rank:
                yield f"{action} is on rank {rank}, its stage on rank {schedule.rank_of(action.stage)}"


def _incomplete(schedule: Schedule) -> Iterator[str]:
    counts: dict[Action, int] = {}
    for _, action in _known(schedule):
        counts[action] = counts.get(action, 0) + 1
    for stage in range(_stages(schedule)):
        rank = schedule.rank_of(stage)
        for microbatch in range(schedule.num_microbatches):
            f, b, i, w = (counts.get(Action(stage, kind, microbatch), 0) for kind in ("F", "B", "I", "W"))
            if f != 1:
                yield f"{Action(stage, 'F', microbatch)} of rank {rank} occurs {f} times, not once"
            if stage in schedule.shards and (b, i, w) != (0, 0, 1):
                yield f"{stage} is a shard of the head, on rank {rank}: it takes W{microbatch} once, no B and no I"
            elif stage not in schedule.shards and (b, i, w) not in ((1, 0, 0), (0, 1, 1)):
                yield (
                    f"{Action(stage, 'B', microbatch)} of rank {rank} occurs {b} times, its I {i} and its W {w} times: "
                    f"it takes one B, or one I and one W"
                )


def _disordered(schedule: Schedule) -> Iterator[str]:
    newest: dict[tuple[int, str], int] = {}
    for rank, action in _known(schedule):
        late = [result for result in RESULTS[action.kind] if newest.get((action.stage, result), -1) > action.microbatch]
        if late:
            yield (
                f"{action} on rank {rank} comes after the {NAMES[late[0]]} of microbatch "
                f"{newest[action.stage, late[0]]}: the microbatches of a stage must stay in order"
            )
        for result in RESULTS[action.kind]:
            newest[action.stage, result] = max(newest.get((action.stage, result), -1), action.microbatch)


def _stuck(schedule: Schedule) -> Iterator[str]:
    """The action that each rank never gets past, and what that waits for. Results of no action count as there."""
    makers = {
        (action.stage, result, action.microbatch): action
        for _, action in _known(schedule)
        for result in RESULTS[action.kind]
    }
    rows: list[list[Action]] = [[] for _ in schedule.actions]
    for rank, action in _known(schedule):
        rows[rank].append(action)
    at = [0] * len(rows)
    missing = set(makers)  # results yet to come
    progress = True
    while progress:
        progress = False
        for rank, row in enumerate(rows):
            while at[rank] < len(row) and not _lacks(row[at[rank]], schedule, missing):
                action = row[at[rank]]
                missing -= {(action.stage, result, action.microbatch) for result in RESULTS[action.kind]}
                at[rank] += 1
                progress = True
    for rank, row in enumerate(rows):
        if at[rank] < len(row):
            lacks = [makers[result] for result in _lacks(row[at[rank]], schedule, missing)]
            yield f"deadlock: rank {rank} stops at {row[at[rank]]}, which waits for {' and '.join(map(str, lacks))}"


def _lacks(action: Action, schedule: Schedule, missing: set[tuple[int, str, int]]) -> list[tuple[int, str, int]]:
    needed = [(stage, result, action.microbatch) for stage, result in schedule.inputs(action)]
    return [result for result in needed if result in missing]


def _too_full(schedule: Schedule, memory_cap: float) -> Iterator[str]:
    for rank, row in enumerate(schedule.actions):
        held = 0
        for action in row:
            held += action.kind == "F" and action.stage not in schedule.shards
            if held > memory_cap:
                yield f"rank {rank} holds {held} microbatches of its stages at {action}, more than {memory_cap:g}"
                break
            held -= action.kind in "BW" and action.stage not in schedule.shards
