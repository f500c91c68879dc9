"""Loggers of services: one protocol, failures that are told once, the same series after a resume; the real ones where installed."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
from small_runs import records

from forgather_dsl import Logger, TensorBoard, Trackio, Trainer, UserError, WandB
from forgather_dsl.dsl import build
from forgather_dsl.train.services import RunFacts, Service, require_services, series_of

SETTINGS = "seed = 0\noptimizer = AdamW\n"
STEP = {"step": 10, "loss": 2.5, "mfu": None, "peak_memory_bytes": [10, 20], "skipped": True, "grad_norm": float("nan")}
LINES = [{"step": 0, "data_fingerprint": "x", "num_parameters": 7}, STEP, {"step": 10, "sample": "def f(<b>):"}]


def needs(package: str) -> Any:
    return pytest.mark.skipif(importlib.util.find_spec(package) is None, reason=f"{package} is not installed")


class Recorder:
    """A backend that remembers, and fails at a step."""

    def __init__(self, fails_at: int = -1) -> None:
        self.calls: list[Any] = []
        self._fails_at = fails_at

    def start(self, about: RunFacts) -> None:
        self.calls.append(("start", about.name, about.config))

    def log(self, step: int, values: dict[str, float], texts: dict[str, str]) -> None:
        if step == self._fails_at:
            raise OSError("the network is down")
        self.calls.append((step, values, texts))

    def finish(self) -> None:
        self.calls.append("finish")


class FailingAt2(Service):
    def __init__(self) -> None:
        super().__init__("Recorder", Recorder(fails_at=2))


class Failing(Logger[FailingAt2]):
    """A service that goes away."""


class Told:
    def __init__(self, file: str) -> None:
        self.file = file

    def start(self, about: RunFacts) -> None:
        Path(self.file).write_text(json.dumps([about.path, about.step, about.resumed, about.config["steps"]]))

    def log(self, record: dict[str, Any]) -> None:
        """Nothing is kept."""

    def close(self) -> None:
        """Nothing is open."""


class Tells(Logger[Told]):
    """A logger of one's own that wants to know the run."""

    file: str = ""


def facts(path: Path, step: int = 0, resumed: bool = False) -> RunFacts:
    return RunFacts(str(path), SETTINGS, step, resumed)


def test_a_service_gets_numbers_and_texts_and_no_more(tmp_path: Path) -> None:
    backend = Recorder()
    service = Service("Recorder", backend)
    service.start(facts(tmp_path / "run"))
    for line in LINES:
        service.log(line)
    service.close()
    service.log(STEP)
    values = {"loss": 2.5, "peak_memory_bytes/rank0": 10.0, "peak_memory_bytes/rank1": 20.0, "skipped": 1.0}
    first = ("start", "run", {"seed": "0", "optimizer": "AdamW"})
    assert backend.calls == [first, (10, values, {}), (10, {}, {"sample": "def f(<b>):"}), "finish"]


def test_a_service_that_fails_is_told_once_and_called_no_more(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    backend = Recorder(fails_at=2)
    service = Service("Recorder", backend)
    service.start(facts(tmp_path))
    for step in range(1, 5):
        service.log({"step": step, "loss": 1.0})
    service.close()
    assert [call[0] for call in backend.calls] == ["start", 1]
    told = capsys.readouterr().err
    assert told.count("warning") == 1
    assert "Recorder failed" in told
    assert "OSError: the network is down" in told


def test_training_goes_on_and_a_logger_is_told_of_its_run(small: Any, tmp_path: Path, capsys: Any) -> None:
    out, told = tmp_path / "run", tmp_path / "told.json"
    experiment = small.replace(small.Small(), steps=3, loggers=(Failing(), Tells(file=str(told))))
    Trainer(experiment, out=str(out), model=False).fit()
    assert [record["step"] for record in records(out, "loss")] == [1, 2, 3]
    assert capsys.readouterr().err.count("Recorder failed") == 1
    assert json.loads(told.read_text()) == [str(out), 0, False, "3"]
    longer = small.replace(small.Small(), steps=4, loggers=(Tells(file=str(told)),))
    Trainer(longer, out=str(out), model=False).fit()
    assert json.loads(told.read_text()) == [str(out), 3, True, "4"]


def test_a_run_keeps_its_name_over_resumes_and_a_new_one_gets_its_own(tmp_path: Path) -> None:
    first = series_of(facts(tmp_path), "trackio")
    assert first.startswith(tmp_path.name)
    assert series_of(facts(tmp_path, 5, resumed=True), "wandb", lambda: "id") == "id"
    assert series_of(facts(tmp_path, 5, resumed=True), "trackio") == first
    assert series_of(facts(tmp_path), "trackio") != first


def test_what_is_not_installed_is_told_before_training(
    small: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    experiment = small.replace(small.Small(), loggers=(TensorBoard(), Trackio(), WandB()))
    with pytest.raises(UserError, match=r"pip install 'forgather_dsl\[tb,trackio,wandb\]'") as caught:
        Trainer(experiment, out=str(tmp_path / "run")).fit()
    assert "TensorBoard() needs the package tensorboard; Trackio() needs" in str(caught.value)
    assert not (tmp_path / "run").exists()
    require_services(small.Small())


def through(logger: Any, path: Path) -> None:
    """A start that logs steps 1 to 4 and one that resumes after step 2 and logs 3 to 5 anew."""
    path.mkdir(exist_ok=True)
    for begin, end, value in ((0, 4, 1.0), (2, 5, 2.0)):
        made = build(logger)
        made.start(facts(path, begin, resumed=begin > 0))
        for step in range(begin + 1, end + 1):
            made.log({"step": step, "loss": value * step, "peak_memory_bytes": [step]})
        made.log({"step": end, "sample": "text"})
        made.close()


@needs("tensorboard")
def test_tensorboard_reads_back_one_series_over_a_resume(tmp_path: Path, capsys: Any) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator  # type: ignore[import-not-found]

    through(TensorBoard(), tmp_path / "run")
    assert "failed" not in capsys.readouterr().err
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard")).Reload()
    assert [(e.step, e.value) for e in events.Scalars("loss")] == [(1, 1.0), (2, 2.0), (3, 6.0), (4, 8.0), (5, 10.0)]
    assert "peak_memory_bytes/rank0" in events.Tags()["scalars"]
    assert "sample/text_summary" in events.Tags()["tensors"]


@needs("trackio")
def test_trackio_keeps_one_run_over_a_resume(tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "kept"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    through(Trackio(project="lab"), tmp_path / "run")
    assert "failed" not in capsys.readouterr().err
    name = json.loads((tmp_path / "run" / "services.json").read_text())["trackio"]
    import sqlite3

    (file,) = (path for path in (tmp_path / "kept").rglob("*.db"))
    with sqlite3.connect(file) as base:
        rows = base.execute("select run_name, step, metrics from metrics order by id").fetchall()
    assert {row[0] for row in rows} == {name}
    assert [row[1] for row in rows] == [1, 2, 3, 4, 3, 4, 5]
    assert json.loads(rows[-1][2])["loss"] == 10.0


@needs("wandb")
def test_wandb_writes_offline_under_one_id(tmp_path: Path, capsys: Any) -> None:
    through(WandB(project="lab", mode="offline"), tmp_path / "run")
    assert "failed" not in capsys.readouterr().err
    identity = json.loads((tmp_path / "run" / "services.json").read_text())["wandb"]
    kept = sorted(path.name for path in (tmp_path / "run" / "wandb").glob("offline-run-*"))
    assert len(kept) == 2
    assert all(name.endswith(identity) for name in kept)
