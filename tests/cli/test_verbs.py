"""Each verb: what it prints for a person, what for a program, and where it gets its experiments from."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import forgather_dsl
from forgather_dsl.cli import gallery
from forgather_dsl.dsl import load, to_dict
from forgather_dsl.plan import hardware, layout

ROOT = Path(forgather_dsl.__file__).parents[1]
FIRST, PIPELINED = f"{ROOT}/experiments/first.py:First", f"{ROOT}/experiments/first.py:FirstPP2"
FORKED = """
class Base(Experiment, abstract=True):
    "The base."
    seq_len = 16
    model = patch(Llama, num_layers=2, num_heads=2)

class Wide(Base):
    "Wider."
    steps = 3
    model = patch(Llama, dim=64)

class Mixin(Experiment):
    parallel = patch(Pipeline, schedule=GPipe())

class Forgetful(Base):
    pass
"""


@pytest.fixture
def forked(write):
    return write("experiments/forked.py", FORKED)


def python(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """A fresh process in the working directory that finds the package."""
    env = {**os.environ, "PYTHONPATH": str(ROOT), **environment}
    return subprocess.run([sys.executable, *arguments], env=env, capture_output=True, text=True, check=False)


def test_ls_says_of_each_class_what_it_is(cli, forked):
    rows = {row["target"].partition(":")[2]: row for row in cli("ls", "--json").json}
    assert list(rows) == ["Base", "Wide", "Mixin", "Forgetful"]
    assert rows["Wide"] == {
        "target": "experiments/forked.py:Wide",
        "doc": "Wider.",
        "bases": ["Base"],
        "abstract": False,
        "missing": [],
        "error": None,
        "kind": "",
    }
    assert rows["Base"]["abstract"]
    assert "model.dim" in rows["Base"]["missing"]
    assert rows["Mixin"]["abstract"]  # its patch finds nothing to apply to
    assert not rows["Forgetful"]["abstract"]
    assert "model.dim" in rows["Forgetful"]["missing"]


def test_ls_shows_files_that_do_not_import(cli, write, forked):
    write("experiments/broken.py", "class Mine(Experiment):\n    sed = 1\n")
    write("experiments/worse.py", "class Mine(Experiment)\n    seed = 1\n")
    write("experiments/quits.py", "class Mine(Experiment):\n    raise SystemExit(0)\n")
    rows = {row["target"]: row for row in cli("ls", "experiments", "--json").json}
    assert "did you mean 'seed'" in rows["experiments/broken.py"]["error"]
    assert "does not import" in rows["experiments/worse.py"]["error"]
    assert "it exits" in rows["experiments/quits.py"]["error"]
    assert rows["experiments/forked.py:Wide"]["error"] is None
    assert "did you mean 'seed'" in cli("ls").out


def test_ls_imports_only_what_looks_like_experiments(cli, write, project, forked):
    (project / "experiments" / "danger.py").write_text(
        "import os\nclass A(dict): pass\nos.remove('experiments/forked.py')\n"
    )
    (project / "experiments" / ".venv").mkdir()
    (project / "experiments" / ".venv" / "x.py").write_text(
        "from forgather_dsl import Experiment\nclass X(Experiment): pass\n"
    )
    (project / "pyproject.toml").write_text("")  # so that files of the project can import each other
    write("experiments/grown.py", "from experiments.forked import Wide\nclass Wider(Wide):\n    seq_len = 32\n")
    targets = [row["target"] for row in cli("ls", "--json").json]
    assert "experiments/grown.py:Wider" in targets
    assert os.path.exists("experiments/forked.py")
    assert not [target for target in targets if ".venv" in target]


def test_ls_of_one_file_and_of_nothing(cli, forked, project):
    assert len(cli("ls", "experiments/forked.py", "--json").json) == 4
    assert cli("ls", "nowhere").code == 2


def test_ls_without_experiments_shows_the_gallery(cli, project):
    assert any(row["target"] == FIRST for row in cli("ls", "--json").json)


def test_what_a_file_prints_does_not_spoil_the_json(cli, write):
    write(
        "noisy.py",
        "print('hello')\nclass Noisy(Experiment):\n    steps = 1\n    model = patch(Llama, dim=8, num_layers=1, num_heads=1)\n",
    )
    answer = cli("show", "noisy.py", "--json")
    assert answer.json["values"]["steps"] == "1"
    assert "hello" in answer.err


def test_init_copies_the_gallery_and_never_overwrites(cli, project):
    answer = cli("init", "mine")
    assert answer.code == 0
    assert {file.name for file in (project / "mine").iterdir()} == {Path(file).name for file in gallery.files()}
    assert "run mine/first.py:First" in answer.out
    assert {row["target"].partition(":")[0] for row in cli("ls", "mine", "--json").json} >= {"mine/first.py"}
    again = cli("init", "mine")
    assert again.code == 2
    assert "would be overwritten" in again.err


def test_show_prints_the_snapshot(cli, project):
    from forgather_dsl.dsl import snapshot

    assert cli("show", FIRST).out == snapshot(load(FIRST)())


def test_show_applies_settings_and_says_who_set_what(cli, project):
    answer = cli("show", FIRST, "--why", "--set", "optimizer=AdamW", "--set", "optimizer.lr=0.5", "--json").json
    assert answer["values"]["optimizer"] == "AdamW"
    assert answer["values"]["optimizer.lr"] == "0.5"
    assert answer["why"]["optimizer.lr"].startswith("--set")
    assert answer["why"]["seq_len"].startswith("First (")
    assert "first.py:" in answer["why"]["seq_len"]
    line = next(x for x in cli("show", FIRST, "--why").out.splitlines() if x.startswith("seq_len"))
    assert line.startswith("seq_len = 128    # First (")


def test_show_of_an_abstract_class_leaves_open_what_is_open(cli, forked):
    assert "model.dim = REQUIRED" in cli("show", "experiments/forked.py:Base").out
    assert cli("show", "experiments/forked.py:Forgetful").code == 2


def test_show_warns_on_stderr(cli, write):
    write(
        "m.py",
        "class Mine(Experiment):\n    steps = 1\n    seq_len = 16\n    model = patch(Llama, dim=seq_len, num_layers=1, num_heads=1)\n",
    )
    answer = cli("show", "m.py", "--json")
    assert answer.code == 0
    assert answer.err.startswith("warning: ")
    assert "self.seq_len" in answer.err
    assert answer.json["values"]["model.dim"] == "16"


def test_explain_lists_every_say_the_winner_first(cli, project):
    rows = cli("explain", PIPELINED, "optimizer.lr", "--set", "optimizer.lr=0.01", "--json").json
    assert [row["who"] for row in rows] == ["--set", "First", "Muon", "Optimizer"]
    assert rows[1]["value"] == "0.02"
    assert "first.py:" in rows[1]["where"]
    assert cli("explain", FIRST, "optimizer.rate").code == 2


def test_diff_says_what_differs_and_who_did_it(cli, project):
    rows = {row["path"]: row for row in cli("diff", FIRST, PIPELINED, "--json").json}
    assert rows["parallel"]["left"] == "Single"
    assert rows["parallel"]["right"] == "Pipeline"
    assert rows["parallel"]["right_by"].startswith("FirstPP2 (")
    assert rows["parallel.stages"]["left"] is None
    assert "no difference" in cli("diff", FIRST, FIRST).out


def test_graph_goes_down_to_stages_and_actions(cli, project):
    text = cli("graph", PIPELINED).out
    assert "model: Llama -> forgather_dsl.models.llama.Llama" in text
    assert "source: the same as data" in text
    assert "stage 0: embedding, layers 0 to 2" in text
    assert "stage 1: layer 3, norm and head" in text
    assert "0F0 0F1 0B0" in text


def test_graph_as_json_is_what_the_trainer_cuts(cli, project):
    found = cli("graph", PIPELINED, "--json").json
    layers = [stage["layers"] for rank in found["ranks"] for stage in rank["stages"]]
    assert layers == [list(stage) for stage in layout.lay_out(load(PIPELINED)()).layers]
    assert found["ranks"][1]["actions"] == [f"1{kind}{k}" for k in range(4) for kind in "FB"]
    paths = {node["path"] for node in found["nodes"]}
    assert all(edge["from"] in paths and edge["to"] in paths for edge in found["edges"])
    assert found == cli("graph", PIPELINED, "--format", "json").json


def test_graph_is_drawn_for_mermaid_and_dot(cli, project):
    mermaid, dot = (cli("graph", PIPELINED, "--format", form).out for form in ("mermaid", "dot"))
    assert mermaid.startswith("graph TD\n")
    assert "rank1 --> stage1" in mermaid
    assert dot.startswith("digraph")
    assert dot.rstrip().endswith("}")
    assert dot.count("{") == dot.count("}")
    assert "rank1 -> stage1;" in dot


def test_targets_are_found_by_module_and_by_only_class(cli, write, monkeypatch, project):
    write(
        "solo_experiments.py",
        "class Solo(Experiment):\n    steps = 7\n    model = patch(Llama, dim=8, num_layers=1, num_heads=1)\n",
    )
    monkeypatch.syspath_prepend(project)
    for target in ("solo_experiments.py", "solo_experiments", "solo_experiments:Solo", "solo_experiments.py:Solo"):
        assert cli("show", target, "--json").json["values"]["steps"] == "7"


def test_a_run_directory_is_a_target(cli, project):
    (project / "runs" / "one").mkdir(parents=True)
    (project / "runs" / "one" / "config.json").write_text(json.dumps(to_dict(load(PIPELINED)())))
    assert cli("show", "runs/one", "--json").json["values"]["parallel.stages"] == "2"
    assert cli("diff", "runs/one", PIPELINED, "--json").json == []
    assert "runs/one" in cli().out


def test_without_a_verb_it_says_what_is_here_and_what_to_do(cli, forked):
    answer = cli()
    assert answer.code == 0
    assert "3 in experiments" in answer.out  # files are read, not imported: Mixin does not say that it is one
    assert len([line for line in answer.out.splitlines() if line.startswith("  python -m forgather_dsl ")]) == 3


def test_run_without_target_trains_first_from_anywhere(cli, project, monkeypatch):
    from forgather_dsl.train import trainer

    seen = {}

    def fit(self):
        seen.update(target=self.target, name=type(self.experiment).__name__, steps=self.experiment.steps, out=self.out)

    monkeypatch.setattr(trainer.Trainer, "fit", fit)
    assert cli("run", "--set", "steps=2", "--out", "here").code == 0
    assert seen == {"target": FIRST, "name": "First", "steps": 2, "out": "here"}


def test_run_of_a_run_directory_goes_on_there(cli, project, monkeypatch):
    from forgather_dsl.train import trainer

    (project / "one").mkdir()
    (project / "one" / "config.json").write_text(json.dumps(to_dict(load(FIRST)())))
    seen = []
    monkeypatch.setattr(trainer.Trainer, "fit", lambda self: seen.append(self.out))
    assert cli("run", "one").code == 0
    assert seen == ["one"]


@pytest.mark.parametrize(
    ("failure", "code"),
    [("UserError('no', exit_code=4)", 4), ("Interrupted('saved')", 130), ("KeyboardInterrupt()", 130)],
)
def test_exit_codes_of_a_run_are_passed_on(cli, project, monkeypatch, failure, code):
    from forgather_dsl import errors
    from forgather_dsl.train import trainer

    def fit(self):
        raise eval(failure, vars(errors))

    monkeypatch.setattr(trainer.Trainer, "fit", fit)
    answer = cli("run", FIRST)
    assert answer.code == code
    assert "Traceback" not in answer.err


def test_what_does_not_fit_ends_with_3_before_anything_is_made(cli, project, monkeypatch):
    monkeypatch.setattr(hardware, "gpus", tuple)
    monkeypatch.setattr(hardware, "host_memory", lambda: 8 * 2**30)
    answer = cli("run", f"{ROOT}/experiments/llama7b.py:PP4ZeroBubble")
    assert answer.code == 3
    assert "GiB of memory, this machine has 8.0 GiB and no GPU" in answer.err
    assert "rank 3: " in answer.err
    assert os.listdir() == []


def test_doctor_pings_between_two_real_ranks(project):
    done = python("-m", "forgather_dsl", "doctor", "--json")
    found = json.loads(done.stdout)
    assert done.returncode == 0
    assert 0 < found["ping"]["seconds"] < 1
    assert found["ping"]["bytes_per_second"] > 1e6
    assert found["versions"]["torch"]
    assert found["host_memory_bytes"] > 2**28
    assert found["cache"]["path"] == os.environ["FORGATHER_CACHE"]


def test_doctor_tells_when_ranks_cannot_talk(cli, project, monkeypatch):
    from forgather_dsl.cli import doctor

    monkeypatch.setattr(sys, "executable", "/bin/false")
    assert "error" in doctor.ping_between_ranks()
    assert "failed" in cli("doctor").out


def test_reading_is_quick_and_imports_nothing_heavy(project):
    """By the calls of Python functions it makes, the same on every machine; seconds are in benchmarks/."""
    code = """
import json, sys
from forgather_dsl.cli.app import run_command

calls = 0
def count(frame, event, argument):
    global calls
    calls += event == "call"

sys.setprofile(count)
run_command(sys.argv[1:])
sys.setprofile(None)
heavy = ("torch", "transformers", "datasets", "numpy", "rich", "pydantic", "cattrs")
print(json.dumps({"heavy": [m for m in heavy if m in sys.modules], "calls": calls}), file=sys.stderr)
"""
    done = python("-c", code, "ls", f"{ROOT}/experiments", "--json")
    seen, listed = json.loads(done.stderr), json.loads(done.stdout)
    assert seen["heavy"] == []
    assert len(listed) > 25
    assert seen["calls"] < 8000 * len(listed)  # measured: 5,300 for each of 84 experiments


def test_the_program_is_quiet_when_its_reader_leaves(project):
    done = subprocess.run(
        f"{sys.executable} -m forgather_dsl show {FIRST} | head -1",
        shell=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout == "seq_len = 128\n"
    assert done.stderr == ""


@pytest.mark.parametrize(
    ("words", "cursor", "answers"),
    [
        (
            ["forgather_dsl", "show", "experiments/forked.py"],
            2,
            ["experiments/forked.py:Wide", "experiments/forked.py:Forgetful"],
        ),
        (["forgather_dsl", "show", "experiments/forked.py", ":", "W"], 4, ["Wide"]),  # bash cuts at the colon
        (["forgather_dsl", "show", "experiments/forked.py", ":"], 3, ["Wide", "Forgetful"]),
        (["forgather_dsl", "ru"], 1, ["run"]),
        (["forgather_dsl", "run", "exp"], 2, ["experiments/"]),
    ],
)
def test_bash_completes_verbs_files_and_classes(forked, words, cursor, answers):
    """Abstract classes are not offered; the file is read, not imported."""
    code = "import sys; sys.argv[0] = 'forgather_dsl'; from forgather_dsl.__main__ import main; main()"
    words_now = {"COMP_WORDS": "\n".join(words), "COMP_CWORD": str(cursor)}
    done = python("-c", code, _FORGATHER_DSL_COMPLETE="complete_bash", **words_now)
    found = [line for line in done.stdout.splitlines() if line != "experiments/forked.py:Mixin" and line != "Mixin"]
    assert found == answers, done.stderr


def test_completion_reads_and_does_not_import(write):
    from forgather_dsl.cli.listing import class_names

    file = write("m.py", "raise RuntimeError('imported')\nclass Mine(Experiment):\n    steps = 1\n")
    assert class_names(file) == ["Mine"]


def test_the_gallery_is_found_in_an_installation(tmp_path, monkeypatch):
    """Beside nothing, in `share` of the environment."""
    share = tmp_path / "share" / "forgather_dsl" / "experiments"
    share.mkdir(parents=True)
    (share / "first.py").write_text("")
    monkeypatch.setattr(gallery, "PACKAGE", str(tmp_path / "lib" / "forgather_dsl"))
    monkeypatch.setattr(gallery.sysconfig, "get_path", lambda *a: str(tmp_path))
    assert gallery.gallery() == str(share)
