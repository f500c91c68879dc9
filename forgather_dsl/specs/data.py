"""Text sources and tokenizers as types. A source says where documents come from and which of them are held out."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, TypeVar

import attrs

from ..dsl import REQUIRED, Lazy, derived
from .validators import at_least, fraction

if TYPE_CHECKING:
    import forgather_dsl  # noqa: F401  type checkers resolve the paths in the strings

T = TypeVar("T")
Split = Literal["train", "held_out", "all"]


def _paths(value: Any) -> Any:
    return (value,) if isinstance(value, str) else tuple(value) if isinstance(value, list) else value


class Source(Lazy[T], abstract=True):
    """Documents of text. A document is held out by the hash of its text, so no copy of it is trained on."""

    held_out: float = attrs.field(default=0.02, validator=fraction)
    split: Split = "train"


class Stdlib(Source["forgather_dsl.data.sources.Stdlib"]):
    """Python's own library source, about 450 files and 9 MB: real text on every machine, nothing to download."""

    held_out = 0.05


class TextFiles(Source["forgather_dsl.data.sources.TextFiles"]):
    """Text files, folders or glob patterns; a file is a document unless `separator` cuts it."""

    paths: tuple[str, ...] = attrs.field(default=REQUIRED, converter=_paths)
    encoding: str = "utf-8"
    separator: str | None = None


class JsonLines(Source["forgather_dsl.data.sources.JsonLines"]):
    """One JSON object a line, the text in `field`; `.gz` is read too."""

    paths: tuple[str, ...] = attrs.field(default=REQUIRED, converter=_paths)
    field: str = "text"


class Parquet(Source["forgather_dsl.data.sources.Parquet"]):
    """Parquet files, the text in column `field`."""

    paths: tuple[str, ...] = attrs.field(default=REQUIRED, converter=_paths)
    field: str = "text"


class HF(Source["forgather_dsl.data.sources.HF"]):
    """A dataset of the Hugging Face hub, or a local folder that `datasets` reads."""

    path: str = REQUIRED
    name: str | None = None  # the hub's configuration name
    field: str = "text"
    subset_split: str = "train"  # the split as the hub names it
    streaming: bool = False


class ChatSource(Source[T], abstract=True):
    """Conversations, written as `template` says, packed into sequences; the loss is that of the assistant's turns."""

    shape: Literal["auto", "messages", "sharegpt", "prompt", "alpaca"] = "auto"  # of a record
    template: str | None = None  # None: the tokenizer's own; "chatml", "llama3", "mistral", "plain", a file, or Jinja
    system: str | None = None  # said first where a conversation has no system message
    train_on: Literal["assistant", "last", "all"] = "assistant"  # turns of the assistant, the last one, or everything
    too_long: Literal["truncate", "cut", "drop", "refuse"] = "truncate"  # a conversation longer than seq_len
    bad: Literal["refuse", "skip"] = "refuse"  # records that cannot be trained on exactly


class Chat(ChatSource["forgather_dsl.data.chat.Chat"]):
    """Files of JSON lines, JSON arrays or Parquet, or a dataset of the hub or a local folder."""

    paths: tuple[str, ...] = attrs.field(default=(), converter=_paths)
    dataset: str | None = None  # instead of paths: a hub id, or a folder that `datasets` reads
    name: str | None = None  # the hub's configuration name
    subset_split: str = "train"  # the split as the hub names it
    streaming: bool = False

    def __check__(self) -> Any:
        if bool(self.paths) == (self.dataset is not None):
            yield "paths", "write paths=('chats.jsonl',) or dataset='org/name', one of them"
        if self.dataset is None and (self.name, self.subset_split, self.streaming) != (None, "train", False):
            yield "dataset", "name, subset_split and streaming are of a dataset, and there is none; leave them out"


class StdlibChat(ChatSource["forgather_dsl.data.stdlib_chat.StdlibChat"]):
    """Questions about Python's own library, answered with its docstrings: chat data on every machine, offline."""

    held_out = 0.05
    template = "plain"


class Tokenizer(Lazy[T], abstract=True):
    """Text to token ids and back, with one id for the document boundary."""

    vocab_size: int = attrs.field(default=REQUIRED, validator=at_least(1))


class TrainedBPE(Tokenizer["forgather_dsl.data.tokenizers.TrainedBPE"]):
    """Byte-level BPE trained on a sample of the training text, once, and cached."""

    vocab_size: int = attrs.field(default=4096, validator=at_least(258))
    source: Source = REQUIRED
    sample_bytes: int = attrs.field(default=1_000_000, validator=at_least(1))


class TokenizerFile(Tokenizer["forgather_dsl.data.tokenizers.TokenizerFile"]):
    """A `tokenizer.json`."""

    path: str = REQUIRED
    eos: str | None = None  # the document boundary; None: the usual names are tried

    @derived
    def vocab_size(self) -> int:
        """As the file says."""
        from ..data.tokenizers import count_tokens

        return count_tokens(self.path)


class HFTokenizer(Tokenizer["forgather_dsl.data.tokenizers.HFTokenizer"]):
    """A tokenizer of the hub or of a local folder. Of the hub, `vocab_size` has to be said: nothing is fetched to plan."""

    path: str = REQUIRED
    eos: str | None = None

    @derived
    def vocab_size(self) -> int:
        """As the folder says."""
        from ..data.tokenizers import count_tokens

        return count_tokens(self.path)


class Bytes(Tokenizer["forgather_dsl.data.tokenizers.Bytes"]):
    """The 256 bytes and a boundary."""

    @derived
    def vocab_size(self) -> int:
        """Fixed."""
        return 257
