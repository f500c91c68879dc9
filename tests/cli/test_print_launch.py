"""`run --print-launch`: scripts that are complete for a shell and say what differs, and requests that cannot be met."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest

from forgather_dsl.cli.launching import PASSED_ON

BODY = """
from forgather_dsl import Single

class Two(Experiment):
    "Two ranks, no cards."
    model, steps = patch(Llama, dim=16, num_layers=8, num_heads=2), 5
    microbatch_size = 1
    parallel = Pipeline(stages=2)

class One(Two):
    parallel = Single()

class Eight(Two):
    hardware = "4xA100"
    parallel = Pipeline(stages=4, replicas=2)

class Shared(Two):
    hardware = "4x24GB"
    parallel = Pipeline(stages=4, replicas=2, ranks_per_gpu=2)
"""
Cli = Callable[..., Any]


@pytest.fixture(autouse=True)
def experiments(write: Callable[[str, str], str], monkeypatch: pytest.MonkeyPatch) -> None:
    write("exp.py", BODY)
    for name in PASSED_ON:
        monkeypatch.delenv(name, raising=False)


def launched(cli: Cli, name: str, launcher: str, *more: str) -> str:
    answer = cli("run", f"exp.py:{name}", "--print-launch", launcher, *more)
    assert answer.code == 0, answer.err
    return answer.out


def shell(text: str) -> None:
    """A script that a shell can read."""
    done = subprocess.run(["bash", "-n"], input=text, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_torchrun_on_several_machines(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HOME", "/a b/hf")
    more = ("--hosts", "10.0.0.1:29500,ten-2", "--set", "seed=3", "--out", "/shared/run 1", "--no-model")
    text = launched(cli, "Eight", "torchrun", *more)
    shell(text)
    assert "Eight: 8 ranks on 2 machines, 4 on each" in text
    assert "#   ssh ten-2 'bash -s 1' < launch.sh" in text
    assert 'HEAD=$(getent ahostsv4 "${2:-10.0.0.1}"' in text
    assert "export HF_HOME='/a b/hf'" in text
    assert f"PYTHON=${{PYTHON:-{sys.executable}}}\n" in text  # a shell of ssh has no virtual environment of its own
    assert '--nnodes=2 --nproc-per-node=4 --node-rank="$NODE"' in text
    assert '--master-addr="$HEAD" --master-port=29500 --local-addr="$OWN"' in text
    assert "-m forgather_dsl run exp.py:Eight --set seed=3 --out '/shared/run 1' --no-model\n" in text


def test_the_address_and_the_interface_are_asked_for_or_given(cli: Cli) -> None:
    text = launched(cli, "Two", "torchrun", "--gpus-per-node", "1", "--interface", "enp3s0")
    shell(text)
    assert "bash launch.sh 1 ADDRESS_OF_MACHINE_0" in text
    assert "${2:?an address of machine 0" in text
    assert "INTERFACE=enp3s0\n" in text
    assert "--out runs/Two-" in text  # one folder for all, by its name


def test_one_machine_needs_no_rendezvous(cli: Cli) -> None:
    text = launched(cli, "Two", "torchrun", "--gpus-per-node", "2", "--out", "r")
    assert text.endswith("torchrun --standalone --nproc-per-node=2 -m forgather_dsl run exp.py:Two --out r\n")
    assert launched(cli, "One", "torchrun", "--gpus-per-node", "1", "--out", "r").endswith(
        "\npython -m forgather_dsl run exp.py:One --out r\n"
    )


def test_slurm(cli: Cli) -> None:
    text = launched(cli, "Shared", "slurm", "--gpus-per-node", "2", "--out", "/shared/r")
    shell(text)
    lines = text.splitlines()
    wanted = ["--nodes=2", "--ntasks-per-node=4", "--gpus-per-node=2", "--signal=TERM@120"]
    assert [f"#SBATCH {each}" in lines for each in wanted] == [True] * 4
    first_command = next(i for i, line in enumerate(lines) if line and not line.startswith("#"))
    assert not any(line.startswith("#SBATCH") for line in lines[first_command:])  # Slurm would not read them
    assert lines[-1] == (
        'srun --kill-on-bad-exit=0 --gpu-bind=none "$PYTHON" -m forgather_dsl run exp.py:Shared --out /shared/r'
    )
    assert "#SBATCH --gpus" not in launched(cli, "Two", "slurm", "--gpus-per-node", "1")  # there are no cards


def test_skypilot(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    yaml = pytest.importorskip("yaml")
    monkeypatch.setenv("FORGATHER_CACHE", "it's")
    task = yaml.safe_load(launched(cli, "Eight", "skypilot", "--out", "/mnt/r"))
    assert (task["name"], task["num_nodes"], task["resources"]) == ("eight", 2, {"accelerators": "A100-80GB:4"})
    assert task["envs"] == {"FORGATHER_CACHE": "it's"}
    assert '--master-addr="$HEAD" --master-port=29400' in task["run"]
    assert task["run"].rstrip().endswith("-m forgather_dsl run exp.py:Eight --out /mnt/r")
    shell(task["run"])
    one = yaml.safe_load(launched(cli, "Two", "skypilot", "--gpus-per-node", "2", "--out", "r"))
    assert one["resources"] == {"cpus": "4+"}
    assert one["run"] == "python -m forgather_dsl run exp.py:Two --out r\n"


@pytest.mark.parametrize(
    ("name", "more", "said"),
    [
        ("Two", ["--print-launch", "pbs", "--gpus-per-node", "1"], "write one of torchrun, slurm, skypilot"),
        ("Two", ["--print-launch", "torchrun"], "no GPU, so nothing says how many of the 2 ranks"),
        ("Two", ["--print-launch", "torchrun", "--gpus-per-node", "0"], "a machine has 1 or more"),
        (
            "Eight",
            ["--print-launch", "slurm", "--gpus-per-node", "3"],
            "write --gpus-per-node with one of [1, 2, 4, 8]",
        ),
        ("Shared", ["--print-launch", "slurm", "--gpus-per-node", "3"], "6 ranks (3 cards with 2 ranks each)"),
        ("Eight", ["--print-launch", "torchrun", "--hosts", "a,b,c"], "--hosts names 3 machines, and 8 ranks with 4"),
        ("Eight", ["--print-launch", "torchrun", "--hosts", "a,a"], "names a more than once"),
        ("Eight", ["--print-launch", "torchrun", "--hosts", "a,localhost"], "localhost is this machine to itself only"),
        ("Eight", ["--print-launch", "torchrun", "--hosts", "a:80,b"], "'80' is no port that a user may open"),
        ("Eight", ["--print-launch", "torchrun", "--hosts", "$(x),b"], "'$(x)' is no name or IPv4 address"),
        ("Eight", ["--print-launch", "slurm", "--hosts", "a,b"], "slurm chooses the machines itself"),
        ("Eight", ["--print-launch", "torchrun", "--interface", "a b"], "no name of a network interface"),
        ("Eight", ["--print-launch", "torchrun", "--profile"], "--profile measures on one machine"),
        ("Eight", ["--print-launch", "slurm", "--seeds", "2"], "--print-launch is for one run"),
        ("Two", ["--hosts", "a,b"], "--hosts: of --print-launch torchrun|slurm|skypilot, which is not given"),
    ],
)
def test_what_cannot_be_launched_is_refused(cli: Cli, name: str, more: list[str], said: str) -> None:
    answer = cli("run", f"exp.py:{name}", *more)
    assert answer.code == 2
    assert said in answer.err
    assert answer.out == ""


def test_every_problem_is_said_at_once(cli: Cli) -> None:
    answer = cli("run", "exp.py:Two", "--print-launch", "x", "--hosts", "a,a", "--interface", "/")
    assert len(answer.err.strip().splitlines()) == 4


def test_skypilot_takes_this_folder_alone(cli: Cli, tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "in").mkdir()
    monkeypatch.chdir(tmp_path / "in")
    answer = cli("run", "../exp.py:Eight", "--print-launch", "skypilot")
    assert answer.code == 2
    assert "SkyPilot copies the working directory alone" in answer.err


def test_it_needs_no_torch() -> None:
    code = (
        "import sys; from forgather_dsl.cli.app import run_command;"
        "code = run_command(['run', 'exp.py:Eight', '--print-launch', 'torchrun']);"
        "sys.exit(code or int('torch' in sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
