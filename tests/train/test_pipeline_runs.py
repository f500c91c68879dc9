"""One experiment on one, two and four pipeline stages: the same bits, and checkpoints that move between them."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
import torch
from small_runs import losses, records, run_script, weights

from forgather_dsl import Trainer
from forgather_dsl.dsl import ConfigError


@pytest.fixture(scope="module")
def single(small: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`Hard` on one process."""
    out = tmp_path_factory.mktemp("single") / "run"
    Trainer(small.Hard(), out=str(out)).fit()
    return out


@pytest.fixture(scope="module")
def two_stages(small: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`HardPP2`, launched by `Trainer.fit`."""
    out = tmp_path_factory.mktemp("two") / "run"
    Trainer(small.HardPP2(), out=str(out)).fit()
    return out


def test_two_stages_learn_the_same_as_one_process_bit_for_bit(single: Path, two_stages: Path) -> None:
    assert losses(two_stages) == losses(single)
    assert records(two_stages, "eval_loss") == records(single, "eval_loss")
    norms = [[float(r["grad_norm"]).hex() for r in records(p, "loss")] for p in (single, two_stages)]
    assert norms[0] == norms[1]
    a, b = weights(single), weights(two_stages)
    assert a.keys() == b.keys()
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_a_pipeline_reports_its_bubble_and_the_memory_of_each_rank(two_stages: Path) -> None:
    for record in records(two_stages, "loss"):
        assert 0 <= record["bubble"] < 1
        assert sum(record["bubbles"]) / 2 == record["bubble"]
        assert len(record["peak_memory_bytes"]) == 2


@pytest.mark.slow
def test_a_checkpoint_of_two_stages_goes_on_with_one_or_with_four(small: Any, single: Path, tmp_path: Path) -> None:
    """Steps 1 to 3 on two stages, then a cut, then another number of stages: the losses of an uninterrupted run."""
    out = tmp_path / "one"
    cut = small.replace(small.HardPP2(), loggers=(small.call("small_runs:PowerCut", at=4),))
    with pytest.raises(small.UserError) as caught:
        Trainer(cut, out=str(out)).fit()
    assert caught.value.exit_code != 0
    shutil.copytree(out, tmp_path / "four")
    Trainer(small.Hard(), out=str(out)).fit()
    assert losses(out) == losses(single)
    Trainer(small.HardPP4(), out=str(tmp_path / "four")).fit()
    assert losses(tmp_path / "four") == losses(single)


@pytest.mark.exhaustive
def test_four_stages_with_split_backward_are_the_same_too(small: Any, single: Path, tmp_path: Path) -> None:
    Trainer(small.HardPP4(), out=str(tmp_path / "run")).fit()
    assert losses(tmp_path / "run") == losses(single)


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["own", "torch"])
def test_two_ranks_with_two_stages_each_in_a_v_learn_the_same(
    small: Any, single: Path, tmp_path: Path, engine: str
) -> None:
    """First and last stage on rank 0: the tied weight is there twice, the loss on the rank that logs."""
    parallel = small.Pipeline(stages=2, schedule=small.ZeroBubble(chunks=2), engine=engine)
    Trainer(small.replace(small.HardPP2(), parallel=parallel), out=str(tmp_path / "run")).fit()
    assert losses(tmp_path / "run") == losses(single)
    assert records(tmp_path / "run", "eval_loss") == records(single, "eval_loss")
    assert all(0 < record["bubble"] < 1 for record in records(tmp_path / "run", "loss"))
    a, b = weights(single), weights(tmp_path / "run")
    assert a.keys() == b.keys()
    assert all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.slow
def test_a_component_of_the_users_own_reaches_the_ranks(corpus: Path, tmp_path: Path) -> None:
    (tmp_path / "parts.py").write_text(
        textwrap.dedent("""
        import torch
        from forgather_dsl import Norm

        class ScaleModule(torch.nn.Module):
            def __init__(self, dim, eps):
                super().__init__()
                self.weight, self.eps = torch.nn.Parameter(torch.ones(dim)), eps
            def reset_parameters(self):
                torch.nn.init.ones_(self.weight)
            def forward(self, x):
                return x * self.weight

        class Scale(Norm[ScaleModule]):
            pass
        """)
    )
    script = f"""
        from forgather_dsl import *
        from parts import Scale

        class Mine(Experiment):
            seq_len, batch_size, microbatch_size, log_every, sampling, steps = 32, 4, 2, 1, None, 2
            data = TextFiles(paths="{corpus}", held_out=0.2)
            tokenizer = Bytes()
            model = patch(Llama, dim=32, num_layers=2, num_heads=2, norm=Scale())
            parallel = Pipeline(stages=2, schedule=GPipe())

        if __name__ == "__main__":
            Trainer(Mine(), out="two").fit()
            Trainer(Mine(parallel=Single()), out="one").fit()
    """
    done = run_script(script, tmp_path)
    assert done.returncode == 0, done.stderr
    assert losses(tmp_path / "one") == losses(tmp_path / "two")


@pytest.mark.slow
def test_a_script_without_a_main_guard_is_told(corpus: Path, tmp_path: Path) -> None:
    """The ranks import the script for its component, and must not start training of their own."""
    script = f"""
        import torch
        from forgather_dsl import *

        class Scale(torch.nn.RMSNorm):
            def __init__(self, dim, eps):
                super().__init__(dim, eps)

        class MyNorm(Norm[Scale]):
            pass

        class Mine(Experiment):
            seq_len, batch_size, steps, sampling = 32, 4, 2, None
            data = TextFiles(paths="{corpus}", held_out=0.2)
            tokenizer = Bytes()
            model = patch(Llama, dim=32, num_layers=2, num_heads=2, norm=MyNorm())
            parallel = Pipeline(stages=2)

        Trainer(Mine(), out="two").fit()
    """
    done = run_script(script, tmp_path)
    assert done.returncode != 0
    assert "if __name__ == '__main__':" in done.stderr


@pytest.mark.slow
def test_a_notebook_trains_on_one_and_two_stages_and_is_told_what_ranks_cannot_import(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))  # of the kernel
    nbformat = pytest.importorskip("nbformat")
    nbclient = pytest.importorskip("nbclient")
    cells = [
        f"""
        from forgather_dsl import *
        class Mine(Experiment):
            seq_len, batch_size, microbatch_size, log_every, sampling = 32, 4, 2, 1, None
            data = TextFiles(paths={str(corpus)!r}, held_out=0.2)
            tokenizer = Bytes()
            model = patch(Llama, dim=32, num_layers=2, num_heads=2)
        """,
        "Trainer(Mine(steps=20), out='one').fit()",
        "Trainer(Mine(steps=20, parallel=Pipeline(stages=2)), out='two').fit()",
        """
        import torch
        class Module(torch.nn.Identity): pass
        class Nothing(Norm[Module]): pass
        try:
            Trainer(replace(Mine(steps=1, parallel=Pipeline(stages=2)), model=patch(Llama, norm=Nothing())), out='three').fit()
        except ConfigError as error:
            print(error)
        """,
    ]
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(textwrap.dedent(c).strip()) for c in cells])
    nbclient.NotebookClient(notebook, timeout=900, resources={"metadata": {"path": str(tmp_path)}}).execute()
    assert losses(tmp_path / "one") == losses(tmp_path / "two")
    said = "".join(output.get("text", "") for output in notebook.cells[3].outputs)
    assert "Nothing" in said
    assert "put it into a .py file" in said
    assert not (tmp_path / "three").exists()


def test_unimportable_parts_are_refused_before_anything_is_written(small: Any, tmp_path: Path) -> None:
    experiment = small.replace(small.HardPP2(), model=small.patch(small.Llama, init=small.NormalInit(std=0.5)))
    assert experiment.model.init.std == 0.5  # a component of the package is fine
    with pytest.raises(ConfigError, match="has no name that a file could hold"):
        Trainer(small.replace(experiment, loggers=(small.call("x:y", f=lambda: 0),)), out=str(tmp_path / "run")).fit()
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_ranks_of_torchrun_train_the_same(experiments: Path, single: Path, tmp_path: Path) -> None:
    root = Path(__file__).parents[2]
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [*launcher, "-m", "forgather_dsl", "run", f"{experiments}:HardPP2", "--out", "run"]
    env = {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr
    assert losses(tmp_path / "run") == losses(single)
    again = subprocess.run(
        [*command, "--resume", "never"], cwd=tmp_path, env=env, capture_output=True, text=True, timeout=900
    )
    assert again.returncode != 0
    assert "holds a run already" in again.stderr
    assert losses(tmp_path / "run") == losses(single)


@pytest.mark.slow
def test_ctrl_c_saves_a_pipeline_too(experiments: Path, tmp_path: Path) -> None:
    """The terminal sends SIGINT to the launcher; every rank stops after the same step, and exits with 130."""
    root = Path(__file__).parents[2]
    command = [sys.executable, "-m", "forgather_dsl", "run", f"{experiments}:HardPP2", "--out", "run"]
    env = {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    endless = [*command, "--set", "steps=100000", "--set", "loggers=Console"]
    process = subprocess.Popen(
        endless, cwd=tmp_path, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("step") and int(line.split()[1].split("/")[0]) >= 2:
            break
    process.send_signal(signal.SIGINT)
    _, told = process.communicate(timeout=240)
    assert process.returncode == 130, told
    assert "saved run/checkpoints/step-" in told
    assert len(list((tmp_path / "run" / "checkpoints").glob("step-????????"))) >= 1
