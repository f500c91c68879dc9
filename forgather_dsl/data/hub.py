"""`HF`: a dataset of the Hugging Face hub, a folder of data files, or a folder written by `save_to_disk`.

In: a hub id or folder, and the names of configuration, split and text field. Out: one document a row.
A hub dataset has no local file to watch: pin it (`"org/name@revision"`) to know what the caches were made from.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from forgather_dsl.data.documents import Document, Source, in_memory
from forgather_dsl.data.files import walk
from forgather_dsl.data.problems import no_such_field, text_of
from forgather_dsl.errors import UserError

if TYPE_CHECKING:
    import datasets

ROWS = 1000  # rows decoded at a time
HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?(@[\w./-]+)?")


class HF(Source):
    """A dataset as the `datasets` library reads it.

    `path`: hub id, optionally `@revision`, or a local folder. `name`: the configuration, None if there is but one.
    `subset_split`: the dataset's own split to read (`"train"`), which is then divided by `split` and `held_out`.
    `streaming`: read hub files as they come instead of downloading them first; without effect on a saved dataset,
    which is memory-mapped.
    """

    def __init__(
        self,
        *,
        path: str,
        name: str | None,
        field: str | None,  # None: whole rows are read, with `rows`
        subset_split: str,
        streaming: bool,
        split: str,
        held_out: float,
    ) -> None:
        """Raises: UserError: a bad split."""
        super().__init__(split=split, held_out=held_out)
        self.path = path
        self.name = name
        self.field = field
        self.subset_split = subset_split
        self.streaming = streaming

    @property
    def folder(self) -> Path | None:
        """The local folder, or None for a hub id."""
        folder = Path(self.path).expanduser()
        return folder.absolute() if folder.is_dir() else None

    def all_documents(self) -> Iterator[Document]:
        """One document a row; a null is none. Raises: UserError: no such dataset, split or field, or not text."""
        assert self.field is not None
        dataset = self.load()
        columns = dataset.column_names  # None: a stream that does not know yet
        if columns is not None:
            if self.field not in columns:
                raise UserError(no_such_field(self.field, columns, str(self)))
            dataset = dataset.select_columns([self.field])
        for batch in dataset.iter(ROWS):
            rows = cast("dict[str, list]", batch)
            if self.field not in rows:
                raise UserError(no_such_field(self.field, rows, str(self)))
            for value in rows[self.field]:
                text = text_of({self.field: value}, self.field, str(self))
                if text:
                    yield in_memory(text)

    def rows(self) -> Iterator[dict[str, Any]]:
        """Whole rows. Raises: UserError: no such dataset or split."""
        for batch in self.load().iter(ROWS):
            columns = cast("dict[str, list]", batch)
            for values in zip(*columns.values()):
                yield dict(zip(columns, values))

    def load(self) -> datasets.Dataset | datasets.IterableDataset:
        """Open the dataset. Raises: UserError: it is not there, or has no such configuration or split."""
        import datasets
        from datasets.exceptions import DatasetsError

        self.check()
        path, _, revision = self.path.partition("@")
        old = int(datasets.__version__.partition(".")[0]) < 4  # later ones run no scripts at all
        never: dict[str, Any] = {"trust_remote_code": False} if old else {}
        try:
            if self.saved():
                dataset = datasets.load_from_disk(str(self.folder))
                return dataset[self.subset_split] if isinstance(dataset, datasets.DatasetDict) else dataset
            dataset = datasets.load_dataset(
                str(self.folder or path),
                self.name,
                split=self.subset_split,
                revision=revision or None,
                streaming=self.streaming,
                **never,
            )
        except (OSError, ValueError, RuntimeError, DatasetsError) as error:  # the third for scripts, which are not run
            raise UserError(f"{self}: {type(error).__name__}: {error}") from error
        assert isinstance(dataset, datasets.Dataset | datasets.IterableDataset)  # one split was asked for
        return dataset

    def saved(self) -> bool:
        """Whether the folder was written by `save_to_disk`."""
        folder = self.folder
        return folder is not None and any((folder / name).is_file() for name in ("dataset_dict.json", "state.json"))

    def check(self) -> None:
        """Look at names, and at the metadata of a saved dataset; nothing is downloaded.

        Raises: UserError: no such folder, nothing in it, no such split or field, a name where none can be.
        """
        folder = self.folder
        if folder is None:
            if self.path.startswith(("/", ".", "~")) or not HUB_ID.fullmatch(self.path):
                raise UserError(
                    f"HF: no such folder: {self.path}. For the hub write path='org/name' or 'org/name@revision'."
                )
        elif self.saved():
            self._check_saved(folder)
        elif not any(walk(str(folder), lambda name: True)):
            raise UserError(f"HF: {folder} has no files.")

    def _check_saved(self, folder: Path) -> None:
        if self.name is not None:
            raise UserError(f"HF: {folder} is a saved dataset, which has no configurations: write name=None.")
        try:
            if (folder / "dataset_dict.json").is_file():
                splits = json.loads((folder / "dataset_dict.json").read_text(encoding="utf-8"))["splits"]
                if self.subset_split not in splits:
                    raise UserError(no_such_field(self.subset_split, splits, f"HF: {folder}", "subset_split"))
                folder = folder / self.subset_split
            fields = json.loads((folder / "dataset_info.json").read_text(encoding="utf-8"))["features"]
        except (OSError, ValueError, LookupError, TypeError) as error:
            raise UserError(f"HF: {folder}: damaged, save it again: {type(error).__name__}: {error}") from error
        if self.field is not None and self.field not in fields:
            raise UserError(no_such_field(self.field, fields, f"HF: {folder}"))

    def identity(self) -> dict[str, Any]:
        """Parameters, and for a folder its files (path, size, time of change)."""
        folder = self.folder
        return {
            "source": "HF",
            "path": str(folder or self.path),
            "name": self.name,
            "field": self.field,
            "subset_split": self.subset_split,
            "split": self.split,
            "held_out": self.held_out,
            "files": [list(file) for file in walk(str(folder), lambda name: True)] if folder else [],
        }

    def __str__(self) -> str:
        name = f", {self.name}" if self.name else ""
        return f"HF {self.path}{name}, {self.subset_split}, field {self.field!r} ({self.described_split()})"
