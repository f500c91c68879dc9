"""What makes a comparison of runs unfair, or its numbers not mean what they seem to: each a sentence with the runs it is about.

In: groups. Out: warnings for the reader, and which groups cannot be compared with the base in a metric at all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

from .groups import Group
from .record import Record, number, step_of
from .results import Metric
from .verdicts import counted

__all__ = ["apart", "same_tokenizer", "warnings"]

SLACK = 0.01  # of the tokens seen: less is a rest of a batch
PER_TOKEN = ("eval_loss", "eval_perplexity", "loss")  # mean something for one tokenizer alone
NAMED = 4  # names in a sentence


def same_tokenizer(groups: Sequence[Group]) -> bool:
    """Whether losses per token of all groups are of the same tokens, as far as their settings say."""
    return len({_of(group, "tokenizer") for group in groups if group.settings}) < 2


def _of(group: Group, field: str) -> tuple[tuple[str, str], ...]:
    return tuple((p, v) for p, v in group.settings.items() if p == field or p.startswith(f"{field}."))


def apart(base: Group, group: Group, metric: Metric) -> str | None:
    """Why values of a group cannot be held against the base's at all."""
    kind, _, name = metric.name.partition("/")
    if kind in PER_TOKEN and not same_tokenizer([base, group]):
        return "another tokenizer, so other tokens; bits per byte can be compared (--metric eval_bits_per_byte)"
    if metric.name.startswith("eval_"):
        a, b = (_held_out(g, name, exact=kind != "eval_bits_per_byte") for g in (base, group))
        if a and b and a != b:
            return "other held-out text"
    return None


def _held_out(group: Group, name: str, exact: bool) -> set[object]:
    """What the runs of a group were evaluated on: its tokens, or its size where only the text has to agree."""
    found: set[object] = set()
    for record in group.records:
        sets = record.start.get("eval_sets")
        about = sets.get(name) if name and isinstance(sets, dict) else None
        if isinstance(about, dict):
            found.add(str(about.get("fingerprint" if exact else "bytes")))
        elif not name and record.start:
            keys = ("eval_fingerprint",) if exact else ("eval_bytes", "gzip_bits_per_byte")
            found.add(tuple(str(record.start.get(key)) for key in keys))
    return found


def warnings(groups: Sequence[Group], metric: Metric, step: int | None) -> list[str]:
    """Everything that the reader should know before believing the tables."""
    records = [record for group in groups for record in group.records]
    chosen = [record for group in groups for record in counted(group, step)]
    out: list[str] = [problem for record in records for problem in record.problems]
    out += _unfinished(records, step)
    out += _repeated(groups, step)
    out += _resumed(records)
    out += _bad_steps(records)
    out += _data(groups)
    if step is None:
        out += _tokens(chosen)
        out += _evaluated_early(chosen, metric)
    out += _machines(chosen)
    return out


def _named(records: Iterable[Record]) -> str:
    names = [record.path for record in records]
    return ", ".join(names[:NAMED]) + (f" and {len(names) - NAMED} more" if len(names) > NAMED else "")


def _unfinished(records: Sequence[Record], step: int | None) -> Iterator[str]:
    for state in dict.fromkeys(record.state for record in records if not record.finished):
        found = [record for record in records if record.state == state]
        last = max(step_of(record.records[-1]) if record.records else 0 for record in found)
        counts = "" if step is not None else "; not counted (--step N compares all at a step they have reached)"
        at = f", at step {last:,}" if len(found) == 1 and last else ""
        yield f"{len(found)} {'run is' if len(found) == 1 else 'runs are'} {state}{at}: {_named(found)}{counts}"


def _repeated(groups: Sequence[Group], step: int | None) -> Iterator[str]:
    for group in groups:
        chosen = [record for record in group.records if record.finished or step is not None]
        again = [record for record in chosen if record not in counted(group, step)]
        if again:
            yield f"{group.name}: the same seed ran more than once, which is no second sample; not counted: {_named(again)}"


def _resumed(records: Sequence[Record]) -> Iterator[str]:
    for record in records:
        ends = list(dict.fromkeys(str(start.get("steps")) for start in record.starts))
        if len(ends) > 1:
            at = step_of(record.starts[-1])
            yield (
                f"{record.path}: its end was changed from {ends[0]} to {ends[-1]} steps, last when it was resumed at step "
                f"{at:,}, so its learning rate followed two schedules"
            )


def _bad_steps(records: Sequence[Record]) -> Iterator[str]:
    kinds = (
        ("skipped", "skipped steps whose gradients were not finite"),
        ("rollback", "went back after a spike of the loss"),
    )
    for key, what in kinds:
        if found := [record for record in records if any(r.get(key) for r in record.records)]:
            yield f"{what}: {_named(found)}"


def _data(groups: Sequence[Group]) -> Iterator[str]:
    """Text that differs although the settings do not say so, and where they do."""
    seen: dict[tuple[object, ...], dict[str, list[Record]]] = {}
    for group in groups:
        for record in group.records:
            if record.start:
                key = (_of(group, "data"), _of(group, "tokenizer"))
                mark = str(record.start.get("data_fingerprint"))
                seen.setdefault(key, {}).setdefault(mark, []).append(record)
    for found in seen.values():
        if len(found) > 1:
            fewest = min(found.values(), key=len)
            yield f"the training text is not the same although its settings are: {_named(fewest)} differ from the others"
    if len({_of(group, "data") for group in groups if group.settings}) > 1:
        yield "the groups train on different data"
    if not same_tokenizer(groups):
        yield "the groups have different tokenizers: losses per token do not compare, bits per byte do"


def _tokens(records: Sequence[Record]) -> Iterator[str]:
    seen = {record: record.clock[-1][1] for record in records if record.clock}
    if seen and min(seen.values()) < (1 - SLACK) * max(seen.values()):
        least, most = min(seen, key=lambda r: seen[r]), max(seen, key=lambda r: seen[r])
        yield (
            f"runs have seen different numbers of tokens, from {seen[least]:,.0f} ({least.path}) to {seen[most]:,.0f} "
            f"({most.path})"
        )


def _evaluated_early(records: Sequence[Record], metric: Metric) -> Iterator[str]:
    early = []
    for record in records if metric.name.startswith("eval_") else ():
        found = record.series(metric.name)
        if found and record.clock and found[-1][0] < record.clock[-1][0]:
            early.append(record)
    if early:
        yield f"{metric.title} is from before the last step, because no evaluation followed it: {_named(early)}"


def _machines(records: Sequence[Record]) -> Iterator[str]:
    def versions(record: Record) -> str:
        found = record.environment.get("versions")
        found = found if isinstance(found, dict) else {}
        return f"forgather_dsl {found.get('forgather_dsl')}, torch {found.get('torch')}"

    def machine(record: Record) -> str:
        e = record.environment
        return f"{record.start.get('device')} of {e.get('processor')} with {e.get('cores')} cores"

    def beside(record: Record) -> str:
        sweep = record.environment.get("sweep")
        jobs = number(sweep.get("jobs")) if isinstance(sweep, dict) else None
        return f"{jobs:.0f} runs side by side" if jobs and jobs > 1 else "alone"

    told: tuple[tuple[Callable[[Record], str], str], ...] = (
        (machine, "tokens/s, seconds and memory are of different machines"),
        (versions, "runs were made with different versions"),
    )
    for key, what in told:
        found = list(dict.fromkeys(map(key, records)))
        if len(found) > 1:
            yield f"{what}: {'; '.join(found[:NAMED])}"
    if any(beside(record) != "alone" for record in records):
        yield "runs shared their machine with others of a sweep: tokens/s and seconds are not what one alone reaches"
