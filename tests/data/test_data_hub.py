"""`HF` reads folders that `datasets` wrote or can read, offline, and passes hub ids on with their revision."""

from __future__ import annotations

import json

import pytest

from forgather_dsl.data.sources import HF
from forgather_dsl.errors import UserError

TEXTS = [f"text {i}\n" for i in range(50)]


@pytest.fixture(autouse=True)
def datasets_cache(tmp_path_factory, monkeypatch):
    import datasets
    from datasets import config

    monkeypatch.setattr(config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("hf"))
    datasets.disable_progress_bars()


def hf(path, **changes):
    settings = {
        "name": None,
        "field": "text",
        "subset_split": "train",
        "streaming": False,
        "split": "all",
        "held_out": 0.0,
    }
    return HF(path=str(path), **{**settings, **changes})


def error_of(function) -> str:
    with pytest.raises(UserError) as caught:
        function()
    assert caught.value.exit_code == 2
    return str(caught.value)


@pytest.fixture
def saved(tmp_path):
    import datasets

    rows = datasets.Dataset.from_dict({"text": [*TEXTS, None], "id": list(range(51))})
    rows.save_to_disk(str(tmp_path / "rows"))
    datasets.DatasetDict({"train": rows, "test": rows.select(range(3))}).save_to_disk(str(tmp_path / "splits"))
    return tmp_path


def test_a_saved_dataset_is_read(saved):
    for folder in ("rows", "splits"):
        source = hf(saved / folder)
        source.check()
        assert list(source.documents()) == TEXTS
    assert list(hf(saved / "splits", subset_split="test").documents()) == TEXTS[:3]


def test_names_that_a_saved_dataset_lacks_are_told_without_loading_it(saved):
    assert error_of(hf(saved / "rows", field="txt").check).endswith(
        "rows: no field 'txt'; there is 'text', 'id'. Write field='text'?"
    )
    assert error_of(hf(saved / "splits", subset_split="tset").check).endswith(
        "splits: no subset_split 'tset'; there is 'train', 'test'. Write subset_split='test'?"
    )
    assert error_of(hf(saved / "rows", name="en").check).endswith("has no configurations: write name=None.")
    assert "field 'id' holds" not in str(hf(saved / "rows"))
    assert "holds int, not text" in error_of(lambda: list(hf(saved / "rows", field="id").documents()))


@pytest.mark.parametrize("content", [None, "{", "{}", "[]"])
def test_a_saved_dataset_with_damaged_metadata_is_told(saved, content):
    path = saved / "rows" / "dataset_info.json"
    path.unlink() if content is None else path.write_text(content)
    assert error_of(hf(saved / "rows").check).startswith(f"HF: {saved}/rows: damaged, save it again: ")


@pytest.mark.parametrize("streaming", [False, True])
def test_a_folder_of_data_files_is_read(tmp_path, streaming):
    lines = "".join(json.dumps({"text": text, "id": 1}) + "\n" for text in TEXTS)
    (tmp_path / "train.jsonl").write_text(lines)
    (tmp_path / "test.jsonl").write_text(lines.splitlines()[0])
    assert list(hf(tmp_path, streaming=streaming).documents()) == TEXTS
    assert list(hf(tmp_path, subset_split="test", streaming=streaming).documents()) == TEXTS[:1]
    said = error_of(lambda: list(hf(tmp_path, field="body", streaming=streaming).documents()))
    assert "no field 'body'; there is 'text', 'id'" in said
    said = error_of(lambda: list(hf(tmp_path, subset_split="valid", streaming=streaming).documents()))
    assert "valid" in said
    assert "train" in said


def test_the_split_by_hash_applies_to_rows(saved):
    train, held_out = (set(hf(saved / "rows", split=side, held_out=0.3).documents()) for side in ("train", "held_out"))
    assert train | held_out == set(TEXTS)
    assert held_out
    assert not train & held_out


def test_a_missing_or_empty_folder_is_told(tmp_path):
    for path in ("./nowhere", str(tmp_path / "nowhere"), "a/b/c"):
        said = error_of(hf(path).check)
        assert said == f"HF: no such folder: {path}. For the hub write path='org/name' or 'org/name@revision'."
    assert error_of(hf(tmp_path).check) == f"HF: {tmp_path} has no files."


def test_a_changed_file_changes_the_identity(tmp_path):
    (tmp_path / "train.jsonl").write_text('{"text": "a"}\n')
    before = hf(tmp_path).identity()
    assert hf(tmp_path).identity() == before
    (tmp_path / "train.jsonl").write_text('{"text": "ab"}\n')
    assert hf(tmp_path).identity() != before
    assert hf(tmp_path, subset_split="test").identity() != hf(tmp_path).identity()


def test_a_hub_id_is_passed_on_with_its_revision(monkeypatch):
    import datasets

    asked = {}

    def load_dataset(path, name, **options):
        asked.update(options, path=path, name=name)
        return datasets.Dataset.from_dict({"text": TEXTS})

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    source = hf("org/stories@v1.0", name="en", streaming=True)
    source.check()
    assert list(source.documents()) == TEXTS
    assert asked == {"path": "org/stories", "name": "en", "split": "train", "revision": "v1.0", "streaming": True}
    assert source.identity()["path"] == "org/stories@v1.0"


def test_a_hub_that_cannot_be_reached_is_a_user_error(monkeypatch):
    import datasets

    def load_dataset(*args, **options):
        raise ConnectionError("Couldn't reach 'org/stories' on the Hub")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    said = error_of(lambda: list(hf("org/stories").documents()))
    assert "HF org/stories, train, field 'text'" in said
    assert "Couldn't reach" in said
