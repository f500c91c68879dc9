"""A run directory from a stranger: every verb reads it, nothing of it is executed, nothing of it steers the terminal."""

from __future__ import annotations

import ast
import json
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from safetensors.torch import save_file

import forgather_dsl
from forgather_dsl import (
    Bytes,
    ConfigError,
    Experiment,
    Llama,
    Pipeline,
    Run,
    TextFiles,
    Trainer,
    UserError,
    patch,
    replace,
)
from forgather_dsl.cli.app import run_command
from forgather_dsl.dsl import build, to_dict
from forgather_dsl.dsl.inert import strangers
from forgather_dsl.dsl.load import load_file
from forgather_dsl.train import checkpoint, directory
from forgather_dsl.train.checkpoint.snapshot import source
from forgather_dsl.train.weights import save_weights

CALL = "forgather_dsl.dsl.special:Call"
CYCLE = "forgather_dsl.dsl.special:Cycle"
NORM = "forgather_dsl.specs.model:RMSNorm"
ESCAPE = "\x1b]0;owned\x07\x1b[31m\x9b31m\u202e\x08"


class Tiny(Experiment):
    seq_len = 24
    batch_size = 2
    microbatch_size = 1
    steps = 1
    sampling = None
    loggers = ()
    eval_data = None
    tokenizer = Bytes()
    model = patch(Llama, dim=16, num_layers=2, num_heads=2, ffn_dim=24, vocab_size=257)


class Stranger(NamedTuple):
    """A run directory, and what must not happen."""

    path: Path
    canary: Path

    def config(self) -> Any:
        return json.loads((self.path / "config.json").read_text())

    def write(self, config: Any) -> None:
        (self.path / "config.json").write_text(config if isinstance(config, str) else json.dumps(config))

    def filled(self, data: Any) -> Any:
        """With the places of this directory in place of words."""
        text = json.dumps(data)
        for word, place in (("SOURCE", self.path / "source" / "evil.py"), ("CANARY", self.canary)):
            text = text.replace(word, str(place))
        return json.loads(text)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("corpus")
    (folder / "text.txt").write_text("a line of text to learn from\n" * 200)
    return folder


@pytest.fixture
def stranger(tmp_path: Path, corpus: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A whole run with a checkpoint, and evil Python wherever somebody might import it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FORGATHER_CACHE", str(tmp_path / "cache"))
    path, canary = tmp_path / "theirs", tmp_path / "canary"
    experiment = Tiny(data=TextFiles(paths=(str(corpus),), held_out=0.0))
    directory.write(experiment, str(path), "theirs.py:Tiny", [])
    torch.manual_seed(0)
    with torch.device("meta"):
        model: Any = build(experiment.model)
    weights = {n: torch.randn(p.shape) * 0.02 for n, p in model.named_parameters()}
    save_weights(str(path / "checkpoints"), [source(name, tensor) for name, tensor in weights.items()])
    code = f"open({str(canary)!r}, 'w').close()\nfrom forgather_dsl import *\nclass X(Experiment): ...\nclass N(RMSNorm): ...\ndef f(*a, **k): ...\n"
    (path / "source").mkdir(exist_ok=True)
    for place in ("source/evil.py", "evil.py", "source/torch.py", "source/json.py", "sitecustomize.py", "conftest.py"):
        (path / place).write_text(code)
    (path / "checkpoints" / "step-00000000" / "optimizer.pt").write_bytes(pickled(canary))
    (path / "pytorch_model.bin").write_bytes(pickled(canary))
    before = list(sys.path)
    yield Stranger(path, canary)
    assert not canary.exists(), "something of the directory was executed"
    assert sys.path == before
    assert not [m for m in list(sys.modules.values()) if str(getattr(m, "__file__", "") or "").startswith(str(path))]


def pickled(canary: Path) -> bytes:
    """A pickle that leaves the canary when it is opened."""
    return b"cbuiltins\nopen\n(S'" + str(canary).encode() + b"'\nS'w'\ntR."


def test_the_pickle_and_the_module_of_these_tests_would_do_it(tmp_path: Path) -> None:
    """The canary sings."""
    import pickle

    pickle.loads(pickled(tmp_path / "canary"))
    assert (tmp_path / "canary").exists()


VERBS: dict[str, list[str]] = {
    "ls": ["ls", "theirs"],
    "ls of the folder above": ["ls", "."],
    "show": ["show", "theirs"],
    "show --why": ["show", "theirs", "--why", "--json"],
    "explain": ["explain", "theirs", "model.norm"],
    "diff": ["diff", "theirs", "theirs", "--set", "seed=1"],
    "graph": ["graph", "theirs"],
    "graph as mermaid": ["graph", "theirs", "--format", "mermaid"],
    "graph as JSON": ["graph", "theirs", "--json"],
    "plan": ["plan", "theirs", "--gpus", "1x24GB"],
    "plan as JSON": ["plan", "theirs", "--gpus", "1x24GB", "--json"],
    "run": ["run", "theirs"],
    "run --smoke": ["run", "theirs", "--smoke", "--out", "smoke"],
    "generate": ["generate", "theirs", "a line", "--max-new-tokens", "2"],
    "export": ["export", "theirs", "--to", "hf", "--out", "hf"],
    "export a checkpoint": [
        "export",
        "theirs/checkpoints/step-00000000",
        "--to",
        "gguf",
        "--out",
        "gguf",
        "--no-tokenizer",
    ],
    "checkpoints": ["checkpoints", "theirs"],
    "checkpoints --verify": ["checkpoints", "theirs", "--verify", "--json"],
    "control": ["control", "theirs"],
    "control as JSON": ["control", "theirs", "status", "--json"],
    "nothing": [],
}
BUILDING = ("run", "run --smoke", "generate")


@pytest.fixture
def every_verb(stranger: Stranger, capsys: pytest.CaptureFixture[str]) -> Callable[[], dict[str, tuple[int, str]]]:
    """Runs all verbs and returns code and stderr of each, after looking at what any output must not have."""

    def run() -> dict[str, tuple[int, str]]:
        answers = {}
        for name, arguments in VERBS.items():
            code = run_command(arguments)
            out, err = capsys.readouterr()
            assert code in (0, 2, 3, 4), name
            assert "Traceback" not in err, name
            assert "should not happen" not in err, (name, err)
            assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", out + err), (name, out, err)
            assert not stranger.canary.exists(), name
            if "--json" in arguments and code == 0:
                json.loads(out)
            answers[name] = (code, err)
        return answers

    return run


def test_every_verb_reads_a_harmless_one(every_verb: Any) -> None:
    assert {name: code for name, (code, err) in every_verb().items() if code} == {}


def test_a_strangers_name_for_an_experiment_of_ours_is_harmless(stranger: Stranger, every_verb: Any) -> None:
    """`$type` names a file with code in it, but every value is explicit and the package's own: even `run` needs no trust."""
    config = stranger.config()
    stranger.write({**config, "$type": f"{stranger.path}/source/evil.py:X", "$base": config["$base"]})
    assert {name: err for name, (code, err) in every_verb().items() if code} == {}


@pytest.mark.slow
def test_ranks_import_nothing_that_the_launcher_did_not(
    stranger: Stranger, corpus: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The same in ranks of their own: they are told not to trust, and their path holds nothing of the directory."""
    config = to_dict(Tiny(data=TextFiles(paths=(str(corpus),), held_out=0.0), parallel=Pipeline(stages=2)))
    stranger.write({**config, "$type": f"{stranger.path}/source/evil.py:X"})
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert run_command(["run", "theirs"]) == 0, capsys.readouterr().err
    assert (stranger.path / "metrics.jsonl").exists()


HOSTILE: dict[str, tuple[str, Any]] = {
    "a call as the model": ("model", {"$type": CALL, "target": "os:system", "arguments": {"command": "touch CANARY"}}),
    "a call as the tokenizer": ("tokenizer", {"$type": CALL, "target": "subprocess:run", "arguments": {"args": "touch CANARY"}}),
    "a call as the data": ("data", {"$type": CALL, "target": "builtins:exec", "arguments": {"source": "open('CANARY', 'w')"}}),
    "a call as a norm": ("model.norm", {"$type": CALL, "target": "os.system", "arguments": {"command": "touch CANARY"}}),
    "a call as a logger": ("loggers", [{"$type": CALL, "target": "os:system", "arguments": {"command": "touch CANARY"}}]),
    "a norm of its own": ("model.norm", {"$type": "SOURCE:N", "$base": NORM, "$target": "SOURCE:N", "eps": 1e-5}),
    "a norm without a base": ("model.norm", {"$type": "SOURCE:N", "eps": 1e-5}),
    "a norm that is os.system": ("model.norm", {"$type": "SOURCE:N", "$base": NORM, "$target": "os.system", "eps": 1e-5}),
    "a target on a class of ours": ("model.norm", {"$type": NORM, "$target": "os.system", "eps": 1e-5}),
    "a hook as a field": ("model.norm", {"$type": "x:N", "$base": NORM, "__build__": {"$object": "os:system"}}),
    "an object as a norm": ("model.norm", {"$object": "SOURCE:f"}),
    "an object in a cycle": ("model.norm", {"$type": CYCLE, "options": [{"$object": "SOURCE:f"}]}),
    "a call in a cycle": ("model.norm", {"$type": CYCLE, "options": [{"$type": CALL, "target": "os.system", "arguments": {}}]}),
    "an object in a text": ("hardware", {"$object": "os:system"}),
    "a schedule of its own": (
        "parallel",
        {"$type": "forgather_dsl.specs.parallel:Pipeline", "stages": 2, "schedule": {"$type": "SOURCE:S", "$base": "forgather_dsl.specs.parallel:Schedule", "$target": "SOURCE:f"}},
    ),
    "a way out of the package": ("model.norm", {"$type": "forgather_dsl.dsl.load:os.system"}),
    "a module of the package that acts": ("model.norm", {"$type": "forgather_dsl.__main__:X"}),
    "a string for a class": ("model.norm", "SOURCE:N"),
    "a reference to nothing": ("model.norm", {"$ref": "../../nowhere"}),
    "a dictionary for a class": ("model.norm", {"__class__": "SOURCE:N", "__reduce__": ["os.system"]}),
    "an experiment in an experiment": ("model", {"$type": "SOURCE:X", "$base": "forgather_dsl.specs.experiment:Experiment"}),
}  # fmt: skip


UNUSED = {  # what a verb does not build does not hinder it
    ("a call as a logger", "generate"),
    ("a call as a logger", "run --smoke"),
    ("an object in a text", "generate"),
    ("a schedule of its own", "generate"),
    ("a target on a class of ours", "run"),  # the class decides what is built, not the data
    ("a target on a class of ours", "run --smoke"),
    ("a target on a class of ours", "generate"),
}


SHORT = {  # of each table, what the default run tries; the exhaustive tests try all
    "a call as the model", "a norm of its own", "a schedule of its own", "an object in a cycle", "a key twice",
    "nested without end", "stages", "a folder",
}  # fmt: skip


def some_exhaustive(names: Any) -> list[Any]:
    """Parameters, those that are not in the short form marked as exhaustive."""
    return [pytest.param(name, marks=() if name in SHORT else pytest.mark.exhaustive) for name in names]


@pytest.mark.parametrize("name", some_exhaustive(HOSTILE))
def test_what_would_run_code_is_shown_and_not_run(name: str, stranger: Stranger, every_verb: Any) -> None:
    place, node = HOSTILE[name]
    config = stranger.config()
    where = config
    *above, last = place.split(".")
    for part in above:
        where = where[part]
    where[last] = stranger.filled(node)
    stranger.write(config)
    answers = every_verb()
    for verb in BUILDING:
        assert answers[verb][0] == (0 if (name, verb) in UNUSED else 2), (verb, answers[verb])


def nested(depth: int) -> str:
    return '{"$type": "x", "a": ' * depth + "1" + "}" * depth


MALFORMED: dict[str, Any] = {
    "empty": "",
    "a list": "[]",
    "null": "null",
    "a text": '"x"',
    "not JSON": "{'$type': 1}",
    "cut off": '{"$type": "forgather_dsl',
    "a key twice": lambda text: text.replace('"seed"', '"steps"'),
    "a type twice": lambda text: text.replace("{", '{"$type": "os:system",', 1),
    "NaN": lambda text: text.replace('"clip_norm": 1.0', '"clip_norm": NaN'),
    "Infinity": lambda text: text.replace('"clip_norm": 1.0', '"clip_norm": Infinity'),
    "a float without end": lambda text: text.replace('"clip_norm": 1.0', '"clip_norm": 1e999'),
    "a number of 5,000 digits": lambda text: text.replace('"seed": 0', f'"seed": {"9" * 5000}'),
    "nested without end": nested(100_000),
    "nested by 200": nested(200),
    "another component": json.dumps({"$type": NORM, "eps": 1e-5}),
    "escapes in a name": json.dumps({"$type": f"x:{ESCAPE}", "$base": NORM}),
    "escapes in a type": json.dumps({"$type": ESCAPE}),
    "escapes in a field": lambda text: text.replace('"seed"', json.dumps(ESCAPE)),
}


@pytest.mark.parametrize("name", some_exhaustive(MALFORMED))
def test_a_malformed_description_is_refused(name: str, stranger: Stranger, every_verb: Any) -> None:
    said = MALFORMED[name]
    text = (stranger.path / "config.json").read_text()
    changed = said(text) if callable(said) else said
    assert changed != text
    stranger.write(changed)
    answers = every_verb()
    for verb in ("show", "run", "generate", "export"):
        assert answers[verb][0] == 2, (verb, answers[verb])
        assert len(answers[verb][1]) < 2000, verb


@pytest.mark.parametrize("value", [ESCAPE, "\ud800"], ids=["escapes", "half a pair"])
@pytest.mark.parametrize("place", ["hardware", "data.separator"])
def test_texts_that_would_steer_a_terminal_are_written_out(
    place: str, value: str, stranger: Stranger, every_verb: Any
) -> None:
    config = stranger.config()
    where = config
    *above, last = place.split(".")
    for part in above:
        where = where[part]
    where[last] = value
    stranger.write(config)
    assert every_verb()["graph"][0] in (0, 2)


def test_a_description_of_100_megabytes_is_not_read(stranger: Stranger, every_verb: Any) -> None:
    with open(stranger.path / "config.json", "r+b") as file:
        file.truncate(100 * 2**20)
    assert "has 104,857,600 bytes" in every_verb()["show"][1]


@pytest.mark.parametrize("kind", some_exhaustive(["a pipe", "a folder", "not UTF-8", "a link to a device"]))
def test_a_description_that_is_no_text_file_is_refused(kind: str, stranger: Stranger, every_verb: Any) -> None:
    file = stranger.path / "config.json"
    file.unlink()
    if kind == "a pipe":
        os.mkfifo(file)
    elif kind == "a folder":
        file.mkdir()
    elif kind == "not UTF-8":
        file.write_bytes(b'{"$type": "\xff\xfe"}')
    else:
        file.symlink_to("/dev/zero")
    answers = every_verb()
    assert all(answers[verb][0] == 2 for verb in ("show", "run", "generate", "export")), answers


HUGE = {
    "layers": ("model.num_layers", 10**9),
    "width": ("model.dim", 10**400),
    "vocabulary": ("model.vocab_size", 10**30),
    "batch": ("batch_size", 10**12),
    "sequence": ("seq_len", 10**15),
    "steps": ("steps", 10**300),
    "chunks": (
        "parallel",
        {
            "$type": "forgather_dsl.specs.parallel:Pipeline",
            "stages": 2,
            "schedule": {"$type": "forgather_dsl.specs.parallel:Interleaved", "chunks": 10**9},
        },
    ),
    "heads": ("model.num_heads", 2**40),
    "heads of no size": ("model.num_kv_heads", 0),
    "a model of petabytes": ("model.dim", 2**24),
    "stages": ("parallel", {"$type": "forgather_dsl.specs.parallel:Pipeline", "stages": 10**9}),
    "seed": ("seed", 10**300),
    "tokens": ("tokens", 10**4000),
    "learning rate": ("optimizer.lr", 1e308),
}


@pytest.mark.parametrize("name", some_exhaustive(HUGE))
def test_numbers_without_measure_end_no_verb_in_a_crash(
    name: str, stranger: Stranger, every_verb: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    place, value = HUGE[name]
    config = stranger.config()
    where = config
    *above, last = place.split(".")
    for part in above:
        where = where[part]
    where[last] = value
    stranger.write(config)
    every_verb()


def test_ranks_are_told_whether_to_trust(
    stranger: Stranger, corpus: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A rank reads the same file as its launcher: it may import what the launcher imported, and nothing else."""
    environments: list[dict[str, str]] = []
    monkeypatch.setattr(
        "forgather_dsl.train.trainer.launch", lambda command, world, more: environments.append(more) or 0
    )
    own = Tiny(data=TextFiles(paths=(str(corpus),), held_out=0.0), parallel=Pipeline(stages=2))
    stranger.write({**to_dict(own), "$type": f"{stranger.path}/source/evil.py:X"})
    assert run_command(["run", "theirs"]) == 0, capsys.readouterr().err
    Trainer(own, out="mine").fit()
    assert [more["FORGATHER_TRUST"] for more in environments] == ["0", "1"]
    assert {more["PYTHONSAFEPATH"] for more in environments} == {"1"}
    assert not any(str(stranger.path) in more["PYTHONPATH"] for more in environments)


def test_with_trust_the_users_own_code_is_imported_and_trains(
    tmp_path: Path, corpus: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FORGATHER_CACHE", str(tmp_path / "cache"))
    (tmp_path / "own_parts.py").write_text(
        "from forgather_dsl import *\nfrom forgather_dsl.models.norms import RMSNorm as Built\n"
        "class Mine(Built):\n    pass\n\nclass MyNorm(Norm['own_parts.Mine']):\n    pass\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    parts = load_file(str(tmp_path / "own_parts.py"))
    own = Tiny(data=TextFiles(paths=(str(corpus),), held_out=0.0))
    own = replace(own, model=replace(own.model, norm=parts.MyNorm()))
    directory.write(own, "run", "own_parts.py:Tiny", [])
    found = list(strangers(directory.read_config("run")))
    assert [(s.path, s.runs) for s in found] == [("", False), ("model.norm", True)]
    assert run_command(["run", "run"]) == 2
    said = capsys.readouterr().err
    assert "pass --trust" in said
    assert "model.norm: own_parts.Mine" in said
    assert not os.path.exists("run/metrics.jsonl")
    assert run_command(["generate", "run", "a", "--max-new-tokens", "1"]) == 2
    assert run_command(["run", "run", "--trust"]) == 0, capsys.readouterr().err
    assert run_command(["generate", "run", "a", "--max-new-tokens", "1"]) == 2
    assert "--trust" in capsys.readouterr().err
    assert run_command(["generate", "run", "a", "--max-new-tokens", "1", "--trust"]) == 0, capsys.readouterr().err


BROKEN_RECORDS = {
    "not JSON": b"{]\n",
    "a list": b"[1]\n",
    "a step that is no number": b'{"step": "one"}\n',
    "not UTF-8": b'{"step": 1, "x": "\xff"}\n',
    "nested without end": b"[" * 100_000 + b"\n",
    "a line without end": b'{"step": 1, "x": "' + b"a" * (17 * 2**20) + b'"}\n',
}


@pytest.mark.parametrize("name", BROKEN_RECORDS)
def test_broken_metrics_name_their_line(name: str, stranger: Stranger) -> None:
    (stranger.path / "metrics.jsonl").write_bytes(b'{"step": 1}\n' + BROKEN_RECORDS[name])
    with pytest.raises(UserError, match=r"metrics\.jsonl:2: "):
        _ = Run(str(stranger.path)).metrics


def test_other_files_of_a_run_are_data_too(stranger: Stranger, every_verb: Any) -> None:
    """What stands beside config.json is broken: no verb trips over it."""
    for name in ("plan.json", "environment.json", "snapshot.txt", "metrics.jsonl"):
        (stranger.path / name).write_text('{"layout": {"$type": "os:system"}, "target": "\x1b[31m"')
    with pytest.raises(ConfigError, match=r"environment\.json is not JSON"):
        _ = Run(str(stranger.path)).environment
    (stranger.path / "metrics.jsonl").unlink()
    (stranger.path / "control").mkdir()
    for beat in ({"state": "\x1b[31m"}, {"state": "running", "pid": "1", "host": 3}, {"pid": -1, "state": "running"}):
        (stranger.path / "control" / "heartbeat.json").write_text(json.dumps(beat))
        assert run_command(["control", "theirs"]) == 0
    assert {name: err for name, (code, err) in every_verb().items() if code} == {}


def test_manifests_do_not_lead_out_of_their_folder(stranger: Stranger, capsys: pytest.CaptureFixture[str]) -> None:
    """A checkpoint that names files elsewhere, or whose files are links, is set aside: nothing of it is loaded."""
    path = stranger.path / "checkpoints" / "step-00000000"
    secret = stranger.path.parent / "secret.safetensors"
    file = next(path.glob("*.safetensors"))
    file.rename(secret)
    manifest = (path / "manifest.json").read_text()
    for name in ("../../../secret.safetensors", str(secret), "rank-0.safetensors/../../../../secret.safetensors"):
        (path / "manifest.json").write_text(manifest.replace(file.name, name))
        assert checkpoint.problem(str(path)) is not None
    (path / "manifest.json").write_text(manifest)
    file.symlink_to(secret)
    assert checkpoint.problem(str(path)) is not None
    assert run_command(["export", "theirs", "--to", "hf", "--out", "hf"]) == 2
    assert not os.path.exists("hf")
    assert "damaged" in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["tokenizer", "dataset", "weights"])
def test_hugging_face_folders_that_ask_for_their_own_code_are_refused(
    kind: str, tmp_path: Path, corpus: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """No prompt, no code: an error that says why. The code would leave the canary."""
    canary, hub = tmp_path / "canary", tmp_path / "hub"
    hub.mkdir()
    code = f"open({str(canary)!r}, 'w').close()\n"
    (hub / "evil.py").write_text(code)
    (hub / "hub.py").write_text(code)  # where old versions of datasets look for a script
    asks = {
        "auto_map": {"AutoTokenizer": ["evil.X", "evil.X"], "AutoConfig": "evil.C", "AutoModelForCausalLM": "evil.M"}
    }
    (hub / "tokenizer_config.json").write_text(json.dumps({**asks, "tokenizer_class": "X"}))
    (hub / "config.json").write_text(json.dumps({**asks, "model_type": "llama"}))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FORGATHER_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("builtins.input", lambda *a: pytest.fail("somebody was asked"))
    own = Tiny(data=TextFiles(paths=(str(corpus),), held_out=0.0))
    directory.write(own, "run", "t", [])
    settings = {
        "tokenizer": ["tokenizer=HFTokenizer", f"tokenizer.path={hub}", "tokenizer.vocab_size=257"],
        "dataset": ["data=HF", f"data.path={hub}"],
    }
    if kind == "weights":
        save_file({"model.norm.weight": torch.ones(16)}, hub / "model.safetensors")
        arguments = ["import", str(hub), "--out", "new"]
    else:
        arguments = ["run", "run", "--out", "new", *(x for s in settings[kind] for x in ("--set", s))]
    assert run_command(arguments) == 2
    said = capsys.readouterr().err
    assert not canary.exists()
    assert "should not happen" not in said
    assert not os.path.exists("new")
    assert ("auto_map" if kind == "weights" else str(hub)) in said


OPENS_ITS_OWN = {"remote_check.py", "harness.py"}  # they load what export has just written


def trusting(file: Path) -> list[int]:
    """Lines of a file that pass `trust_remote_code` with anything but False."""
    nodes = list(ast.walk(ast.parse(file.read_text())))
    passed = [(node.arg, node.value) for node in nodes if isinstance(node, ast.keyword)]
    for node in nodes:
        if isinstance(node, ast.Dict):
            passed += [(getattr(key, "value", None), value) for key, value in zip(node.keys, node.values)]
    return [
        value.lineno
        for name, value in passed
        if name == "trust_remote_code" and not (isinstance(value, ast.Constant) and value.value is False)
    ]


def test_nothing_here_ever_trusts_remote_code() -> None:
    package = Path(forgather_dsl.__file__).parent
    found = {file.name: trusting(file) for file in package.rglob("*.py") if file.name not in OPENS_ITS_OWN}
    assert {name: lines for name, lines in found.items() if lines} == {}
    assert sum("trust_remote_code=False" in file.read_text() for file in package.rglob("*.py")) >= 2
