"""What cannot run is refused before any rank or torch: the field, what is wrong, what to write instead.

`tests/cli/test_bad_input.py` and `tests/cli/test_bad_schedules.py` have the mistakes of language, command line and
schedules; these are of values, data, places and what a run goes on from.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

import forgather_dsl
from forgather_dsl.cli.app import run_command

FILE = """
from forgather_dsl import *
from m2 import nothing

class Base(Experiment):
    steps = 2
    seq_len = 16
    batch_size = 4
    microbatch_size = 1
    sampling = None
    loggers = ()
    data = TextFiles(paths="text.txt", held_out=0.0)
    eval_data = None
    tokenizer = Bytes()
    model = patch(Llama, dim=16, num_layers=4, num_heads=2, ffn_dim=24, vocab_size=257)

class Pipe(Base):
    parallel = Pipeline(stages=2)

class Spread(Base):
    parallel = Pipeline(stages=2, spread_head=True)
    model = patch(Llama, tie_embeddings=True)

class Seconds(Base):
    steps = None
    seconds = 3.0
    parallel = Pipeline(stages=2, post_validation=True)

class SpreadValidated(Base):
    parallel = Pipeline(stages=2, spread_head=True, post_validation=True)

class Endless(Base):
    steps = None

class Circle(Base):
    @derived
    def steps(self):
        return self.seed

    @derived
    def seed(self):
        return self.steps

class Divides(Base):
    @derived
    def steps(self):
        return 1 // 0

class Texts(Base):
    @derived
    def steps(self):
        return "many"

class NoSize(Base):
    model = Llama(dim=16, num_heads=2, vocab_size=257)

class OddHeads(Base):
    model = patch(Llama, dim=18, num_heads=4)

class OnAdam(Base):
    optimizer = patch(Muon, momentum=0.5)

class Large(Base):
    model = Llama(dim=8192, num_layers=200, num_heads=64, vocab_size=128_000)
    hardware = "1x8GB"
"""

FILES: dict[str, bytes] = {
    "text.txt": b"a line of text to learn from\n" * 100,
    "latin.txt": b"caf\xe9 " * 500,
    "binary.txt": bytes(range(256)) * 8,
    "empty.txt": b"",
    "short.txt": b"ab",
    "null.jsonl": b'{"text": null}\n' * 50,
    "nan.jsonl": b'{"text": NaN}\n' * 50,
    "other.jsonl": b'{"txt": "a"}\n' * 50,
    "cut.jsonl": b'{"text": "abc"}\n{"text": "a',
    "prose.json": b"no vocabulary",
    "circle.csv": b"0F0,0F1,0B0,0F2,0F3,0B1,0B2,0B3\n1F0,1F1,1F2,1B0,1B1,1F3,1B2,1B3\n",
    "hole.csv": b"0F0,0F1,0F2,0F3,0B0,0B1,0B2,0B3\n1F0,1F1,1F2,1F3,1B0,1B1,1B3\n",
    "m2.py": b"nothing = None\n",
}


class Bad(NamedTuple):
    """A configuration: settings on a class of the file, or a whole command line; what the message must hold."""

    settings: list[str]
    said: list[str]
    target: str = "Base"
    more: tuple[str, ...] = ()
    code: int = 2


SCHEDULE = ["parallel=Pipeline", "parallel.schedule=ScheduleFile"]
BAD = {
    # sizes
    "no key/value heads": Bad(["model.num_kv_heads=0"], ["model.num_kv_heads", "0 is no size; write 1 to"]),
    "a negative head": Bad(["model.head_dim=-2"], ["model.head_dim", "-2 is no size"]),
    "an MLP of nothing": Bad(["model.ffn_dim=0"], ["model.ffn_dim", "0 is no size"]),
    "a vocabulary below one": Bad(["model.vocab_size=-5"], ["model.vocab_size", ">= 1"]),
    "a vocabulary too small": Bad(["model.vocab_size=256"], ["model.vocab_size", "256 is smaller than the tokenizer's 257", "vocab_size=257"]),
    "a width beyond measure": Bad([f"model.dim={10**30}"], ["model.dim", "<= 16777216"]),
    "layers beyond measure": Bad(["model.num_layers=1000000000"], ["model.num_layers", "<= 1000"]),
    "heads that do not divide": Bad([], ["model.num_heads", "dim 18 is not divisible by 4 heads"], "OddHeads"),
    "a missing size": Bad([], ["model.num_layers", "is required", "write model = patch(Llama, num_layers=...)"], "NoSize"),
    # the batch
    "no microbatch": Bad(["microbatch_size=0"], ["microbatch_size", "write 1 or more"]),
    "a negative microbatch": Bad(["microbatch_size=-1"], ["microbatch_size", "-1 is no number of sequences"]),
    "microbatches that do not divide": Bad(["microbatch_size=3"], ["microbatch_size", "write one of 1, 2, 4"]),
    "microbatches beyond measure": Bad(["batch_size=1000000"], ["microbatch_size", "1000000 microbatches", "larger microbatch_size"]),
    "a batch beyond measure": Bad(["batch_size=999999999999"], ["batch_size", "<= 16777216"]),
    "replicas that do not divide": Bad(["parallel.replicas=3"], ["batch_size", "3 replicas", "parallel.replicas = one of 1, 2, 4"], "Pipe"),
    "a seed beyond 64 bits": Bad([f"seed={2**64}"], ["seed", "<= 9223372036854775807"]),
    "a negative seed": Bad(["seed=-1"], ["seed", ">= 0"]),
    # numbers that are none
    "a learning rate of NaN": Bad(["optimizer.lr=nan"], ["optimizer.lr", "> 0.0: nan"]),
    "an infinite learning rate": Bad(["optimizer.lr=inf"], ["optimizer.lr", "< 3.4e+38"]),
    "a negative learning rate": Bad(["optimizer.lr=-1"], ["optimizer.lr", "> 0"]),
    "betas above one": Bad(["optimizer.betas=(2.0,0.5)"], ["optimizer.betas", "< 1.0: 2.0"]),
    "one beta": Bad(["optimizer.betas=1"], ["optimizer.betas", "2 items, not 1"]),
    "a clip of NaN": Bad(["clip_norm=nan"], ["clip_norm", "> 0.0: nan"]),
    "endless seconds": Bad(["seconds=inf"], ["seconds", "< 3.4e+38"]),
    "half a step": Bad(["steps=2.5"], ["steps", "not a whole number"]),
    "no steps": Bad(["steps=0"], ["steps", ">= 1"]),
    "never a log": Bad(["log_every=0"], ["log_every", ">= 1"]),
    "no checkpoint kept": Bad(["checkpoints.keep_last=0"], ["checkpoints.keep_last", ">= "]),
    "certain dropout": Bad(["model.dropout=1.0"], ["model.dropout", "< 1.0"]),
    "all held out": Bad(["data.held_out=1.0"], ["data.held_out", "< 1.0"]),
    "a warm-up longer than the run": Bad(["lr_schedule.warmup=1.5"], ["lr_schedule.warmup", "<= 1.0"]),
    # positions
    "no base of wavelengths": Bad(["model.rope.theta=1"], ["model.rope.theta", "> 1.0"]),
    "a rope that shrinks": Bad(["model.rope=Llama3Rope", "model.rope.factor=0.5"], ["model.rope.factor", ">= 1"]),
    "a rope without a blend": Bad(["model.rope=Llama3Rope", "model.rope.low_freq_factor=8"], ["model.rope.low_freq_factor", "write a smaller one"]),
    "a window of nothing": Bad(["model.attention=SlidingWindow", "model.attention.window=0"], ["model.attention.window", ">= 1"]),
    # components
    "an unknown source": Bad(["data=TextFile"], ["data", "did you mean 'TextFiles'"]),
    "an unknown schedule": Bad(["parallel.schedule=Interleave"], ["parallel.schedule", "did you mean 'Interleaved'"], "Pipe"),
    "an unknown engine": Bad(["parallel.engine=torche"], ["parallel.engine", "'own', 'torch'"], "Pipe"),
    "torch's engine on a shared card": Bad(["parallel.engine=torch", "parallel.ranks_per_gpu=2"], ["parallel.ranks_per_gpu", "share a card"], "Pipe"),
    "a field of another component": Bad(["model.qk_norm=RMSNorm"], ["model.qk_norm", "did you mean 'attention.qk_norm'"]),
    "a patch of another optimizer": Bad([], ["optimizer", "does not apply", "swap(Muon"], "OnAdam"),
    "derived in a circle": Bad([], ["steps -> seed -> steps", "need each other"], "Circle"),
    "a derived field that fails": Bad([], ["steps", "ZeroDivisionError"], "Divides"),
    "a derived field of another type": Bad([], ["steps", "expected int", "'many'"], "Texts"),
    "nothing that ends it": Bad([], ["steps", "nothing ends this run", "write steps = 1000"], "Endless"),
    # the pipeline
    "more stages than layers": Bad(["parallel.stages=5"], ["parallel.stages", "5 stages for 4 layers", "num_layers=5"], "Pipe"),
    "stages beyond measure": Bad(["parallel.stages=100000"], ["parallel.stages", "<= 128"], "Pipe"),
    "cuts of another model": Bad(["parallel.cuts=[3,3]"], ["parallel.cuts", "adds up to 6", "4 layers"], "Pipe"),
    "a spread head that is tied": Bad([], ["parallel.spread_head", "write tie_embeddings=False"], "Spread"),
    "seconds with post-validation": Bad([], ["parallel.post_validation", "write steps or tokens"], "Seconds"),
    "a spread head with post-validation": Bad([], ["parallel", "post_validation", "leave one of the two out"], "SpreadValidated"),
    "a schedule that deadlocks": Bad([*SCHEDULE, "parallel.schedule.path=circle.csv"], ["parallel.schedule", "deadlock: rank 0 stops at 0B0"]),
    "a schedule with a hole": Bad([*SCHEDULE, "parallel.schedule.path=hole.csv"], ["parallel.schedule", "1B2 of rank 1 occurs 0 times"]),
    "a schedule that is a folder": Bad([*SCHEDULE, "parallel.schedule.path=folder"], ["parallel.schedule", "folder"]),
    # hardware
    "no hardware": Bad(["hardware=much"], ["hardware = 'much'", "write 4x24GB"]),
    "no cards": Bad(["hardware=0x24GB"], ["hardware", "write 1x24GB or more"]),
    "a link of words": Bad(["hardware=4x24GB,link=fast"], ["hardware", "write link=12GB/s"]),
    "no room": Bad([], ["Large needs", "GiB of memory", "rank 0"], "Large", code=3),
    # data
    "data that is not there": Bad(["data.paths=texts.txt"], ["data", "texts.txt", "Did you mean"]),
    "an empty folder": Bad(["data.paths=folder"], ["data", "this folder has no file"]),
    "an empty file": Bad(["data.paths=empty.txt"], ["data", "the file is empty"]),
    "text of another encoding": Bad(["data.paths=latin.txt"], ["data", "not utf-8", "encoding='latin-1'"]),
    "data that is no text": Bad(["data.paths=binary.txt"], ["data", "binary.txt", "glob"]),
    "an unknown encoding": Bad(["data.encoding=klingon"], ["encoding='klingon'", "utf-8"]),
    "text shorter than a sequence": Bad(["data.paths=short.txt"], ["data", "seq_len 16", "write seq_len ="]),
    "records without text": Bad(["data=JsonLines", "data.paths=null.jsonl"], ["null.jsonl|field 'text'", "no text"]),
    "records of numbers": Bad(["data=JsonLines", "data.paths=nan.jsonl"], ["nan.jsonl:1", "holds float"]),
    "records with another field": Bad(["data=JsonLines", "data.paths=other.jsonl"], ["other.jsonl:1", "Write field='txt'"]),
    "a record cut off": Bad(["data=JsonLines", "data.paths=cut.jsonl"], ["cut.jsonl:2", "not JSON"]),
    "a table that is none": Bad(["data=Parquet", "data.paths=text.txt"], ["text.txt", "not a Parquet file"]),
    "a tokenizer that is not there": Bad(["tokenizer=TokenizerFile", "tokenizer.path=no.json"], ["tokenizer", "no.json"]),
    "a tokenizer that is none": Bad(["tokenizer=TokenizerFile", "tokenizer.path=prose.json"], ["tokenizer", "prose.json: not JSON"]),
    # places
    "an --out that is a file": Bad([], ["--out 'text.txt'", "this is a file", "write a folder"], more=("--out", "text.txt")),
    "an --out below a file": Bad([], ["--out 'text.txt/run'", "is a file"], more=("--out", "text.txt/run")),
    "an --out that cannot be made": Bad([], ["--out /proc/nowhere", "write a folder"], more=("--out", "/proc/nowhere")),
    "an --out without a name": Bad([], ["--out ''", "no name for a folder"], more=("--out", "")),
    "an --out too long for a name": Bad([], ["--out aaaa", "too long"], more=("--out", "a" * 300)),
    "a --resume of nothing": Bad([], ["--resume 'nowhere'", "no manifest.json", "write auto, never, or"], more=("--resume", "nowhere")),
    "a --resume of a file": Bad([], ["--resume 'text.txt' is no checkpoint"], more=("--resume", "text.txt")),
    "a --resume of a folder": Bad([], ["--resume 'folder' is no checkpoint"], "Pipe", more=("--resume", "folder")),
    "a --resume of a run": Bad([], ["--resume 'old'", "such as old/checkpoints/step-00000007"], more=("--resume", "old")),
    "the directory of another run": Bad(["seed=4", "model.dim=32"], ["old holds a run of another configuration", "seed: 0 -> 4", "model.dim: 16 -> 32", "--allow-change"], more=("--out", "old")),
    "a new run in an old directory": Bad([], ["old holds a run already", "--out"], more=("--out", "old", "--resume", "never")),
    "a directory that is spoilt": Bad([], ["spoilt/config.json is not JSON"], more=("--out", "spoilt")),
    # several
    "three at once": Bad(["microbatch_size=3", "model.vocab_size=200", "parallel.stages=9"], ["microbatch_size", "model.vocab_size", "parallel.stages"], "Pipe"),
}  # fmt: skip


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project with good and bad files, an old run, and a spoilt one."""
    folder = tmp_path_factory.mktemp("project")
    (folder / "m.py").write_text(FILE)
    (folder / "folder").mkdir()
    for name, content in FILES.items():
        (folder / name).write_bytes(content)
    before = os.getcwd()
    os.chdir(folder)
    try:
        from forgather_dsl.cli.targets import find_experiment
        from forgather_dsl.train.directory import write

        write(find_experiment("m.py:Base"), "old", "m.py:Base", [])
    finally:
        os.chdir(before)
    (folder / "old" / "checkpoints" / "step-00000007").mkdir()
    (folder / "old" / "checkpoints" / "step-00000007" / "manifest.json").write_text("{}")
    (folder / "spoilt").mkdir()
    (folder / "spoilt" / "config.json").write_text("{")
    return folder


def listing(folder: Path) -> list[str]:
    """Everything below a folder, with sizes."""
    return sorted(
        f"{path.relative_to(folder)} {path.stat().st_size}"
        for path in folder.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    )


def command_of(bad: Bad) -> list[str]:
    out = [] if "--out" in bad.more else ["--out", "new"]
    return ["run", f"m.py:{bad.target}", *(x for text in bad.settings for x in ("--set", text)), *out, *bad.more]


@pytest.mark.parametrize("name", BAD)
def test_what_cannot_run_is_refused_and_leaves_nothing(
    name: str,
    place: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    torch_stays_out: Callable[[], None],
) -> None:
    bad = BAD[name]
    monkeypatch.chdir(place)
    monkeypatch.setenv("FORGATHER_CACHE", str(tmp_path))
    monkeypatch.setattr("forgather_dsl.train.trainer.launch", lambda *a, **k: pytest.fail("ranks were started"))
    before = listing(place)
    code = run_command(command_of(bad))
    out, err = capsys.readouterr()
    assert (code, out) == (bad.code, ""), err
    assert err.startswith("error: ")
    assert "Traceback" not in err
    assert "should not happen" not in err
    for text in bad.said:
        assert any(option in err for option in text.split("|")), err
    if bad.target not in ("Base", "NoSize") and not bad.settings and not bad.more and bad.code == 2:
        assert "m.py:" in err
    assert listing(place) == before
    torch_stays_out()


@pytest.fixture
def torch_stays_out(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Fails the test when a module that imports torch was entered: what trains, not what other tests have loaded."""
    entered: list[str] = []
    monkeypatch.setattr("forgather_dsl.train.trainer.ENVIRONMENT", Watched(entered))  # looked at just before torch

    def verify() -> None:
        assert not entered

    return verify


class Watched(dict):  # type: ignore[type-arg]
    """An environment that notes when a single rank reads it."""

    def __init__(self, entered: list[str]) -> None:
        super().__init__()
        self.entered = entered

    def items(self):
        self.entered.append("the session")
        return super().items()


def test_there_are_enough_kinds() -> None:
    assert len(BAD) >= 60


def test_a_good_one_would_start(
    place: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The same command line without a mistake gets as far as starting ranks."""
    started: list[int] = []
    monkeypatch.chdir(place)
    monkeypatch.setenv("FORGATHER_CACHE", str(tmp_path))
    monkeypatch.setattr("forgather_dsl.train.trainer.launch", lambda command, world, *_: started.append(world) or 0)
    assert run_command(["run", "m.py:Pipe", "--out", str(tmp_path / "run")]) == 0, capsys.readouterr().err
    assert started == [2]


SEVERAL = ["three at once", "a schedule that deadlocks", "a --resume of nothing", "an --out that is a file", "text of another encoding"]  # fmt: skip


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", BAD)
def test_any_of_them_is_told_by_a_process_of_its_own_without_torch(name: str, place: Path, tmp_path: Path) -> None:
    refused_by_a_process(name, place, tmp_path)


@pytest.mark.parametrize("name", SEVERAL)
def test_a_process_of_its_own_says_so_without_torch(name: str, place: Path, tmp_path: Path) -> None:
    refused_by_a_process(name, place, tmp_path)


def refused_by_a_process(name: str, place: Path, tmp_path: Path) -> None:
    code = (
        "import sys\n"
        "def no(*a, **k): raise AssertionError('a process was started')\n"
        "from forgather_dsl.cli.app import run_command\n"
        "import forgather_dsl.train.trainer as trainer\n"
        "trainer.launch = no\n"
        "code = run_command(sys.argv[1:])\n"
        "print([m for m in ('torch', 'transformers', 'datasets') if m in sys.modules])\n"
        "sys.exit(code)"
    )
    environment = {
        **os.environ,
        "PYTHONPATH": str(Path(forgather_dsl.__file__).parents[1]),
        "FORGATHER_CACHE": str(tmp_path),
    }
    arguments = [sys.executable, "-c", code, *command_of(BAD[name])]
    done = subprocess.run(arguments, cwd=place, env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == BAD[name].code, done.stderr
    assert done.stdout.strip() == "[]"
    for text in BAD[name].said:
        assert any(option in done.stderr for option in text.split("|")), done.stderr
