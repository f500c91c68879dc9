"""The token stream holds every text once between boundaries, is made once, and is made again when anything changed."""

from __future__ import annotations

import gzip
import hashlib
import json
import math
import os
import subprocess
import sys

import numpy as np
import pytest

from forgather_dsl.data import cache as cache_module
from forgather_dsl.data import documents, tokens
from forgather_dsl.data.compression import GzipSize, gzip_bits_per_byte
from forgather_dsl.data.sources import Stdlib
from forgather_dsl.data.tokenizers import Bytes, HFTokenizer, TrainedBPE
from forgather_dsl.data.tokens import tokenize
from forgather_dsl.errors import UserError

BYTES = Bytes(vocab_size=257)
EOS = 256


def folders(cache):
    return [path for path in (cache / "tokens").iterdir() if path.is_dir()]


def test_the_stream_is_documents_between_boundaries(texts):
    file = tokenize(texts(["ab", "", "é"]), BYTES)
    assert file.array.tolist() == [EOS, 97, 98, EOS, 0xC3, 0xA9, EOS]
    assert file.array.dtype == np.uint16
    assert isinstance(file.array, np.memmap)
    assert (file.num_tokens, file.num_bytes, file.num_documents) == (7, 4, 2)
    assert file.fingerprint == hashlib.sha256(file.array.tobytes()).hexdigest()
    assert (file.folder / "tokens.bin").read_bytes() == file.array.tobytes()


def test_more_than_65536_ids_take_four_bytes(texts):
    assert tokenize(texts(["ab"]), Bytes(vocab_size=65536)).array.dtype == np.uint16
    file = tokenize(texts(["abc"]), Bytes(vocab_size=65537))
    assert file.array.dtype == np.uint32
    assert file.array.tolist() == [EOS, 97, 98, 99, EOS]


def test_a_long_document_is_one_document_in_many_pieces_and_batches(texts, monkeypatch):
    text = "".join(f"line {i}\n" for i in range(2000))
    whole = tokenize(texts([text, "second"]), BYTES)
    monkeypatch.setattr(documents, "PIECE", 100)
    monkeypatch.setattr(tokens, "BATCH", 1000)
    seen = []
    pieces = tokenize(texts([text, "second"]), BYTES, cache_dir=whole.folder, progress=seen.append)
    assert pieces.fingerprint == whole.fingerprint
    assert pieces.num_documents == 2
    assert seen == sorted(seen)
    assert len(seen) > 10
    assert seen[-1] == pieces.num_bytes == len(text) + 6


def test_decoding_the_stream_gives_the_corpus(texts):
    corpus = [f"def function_{i}(value):\n    return value + {i}  # é\n" * 20 for i in range(40)]
    tokenizer = TrainedBPE(vocab_size=300, source=texts(corpus), sample_bytes=10_000)
    file = tokenize(texts(corpus), tokenizer)
    assert tokenizer.decode(file.array.tolist()) == "<|endoftext|>" + "".join(f"{text}<|endoftext|>" for text in corpus)


def test_a_large_file_streams_in_bounded_memory(tmp_path):
    """A separate process: its peak must not grow with the file. It reads 64 MB, which is one document of bytes."""
    path = tmp_path / "large.txt"
    with open(path, "w") as out:
        for _ in range(64):
            out.write(("x" * 99 + "\n") * 10_000)
    program = f"""
import resource
from forgather_dsl.data.sources import TextFiles
from forgather_dsl.data.tokenizers import Bytes
from forgather_dsl.data.tokens import tokenize
def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
source = TextFiles(paths=({str(path)!r},), encoding="utf-8", separator=None, split="train", held_out=0.5)
before = peak()
file = tokenize(source, Bytes(vocab_size=257))
print(file.num_tokens, peak() - before)
"""
    env = {**os.environ, "FORGATHER_CACHE": str(tmp_path / "cache")}
    run = subprocess.run([sys.executable, "-c", program], env=env, capture_output=True, text=True, check=True)
    num_tokens, grown_mib = run.stdout.split()
    assert int(num_tokens) == 32_000_002
    assert float(grown_mib) < 60  # the text alone would be 64, its ids 128


# ---- the cache


def test_a_second_call_reads_nothing(texts, cache):
    source = texts(["ab", "cd"])
    first = tokenize(source, BYTES)
    assert source.reads == 1
    second = tokenize(source, BYTES)
    assert source.reads == 1
    assert second.fingerprint == first.fingerprint
    assert len(folders(cache)) == 1


def test_a_cache_folder_can_be_named(texts, cache, tmp_path):
    file = tokenize(texts(["ab"]), BYTES, cache_dir=tmp_path / "here")
    assert file.folder.is_relative_to(tmp_path / "here")
    assert not (cache / "tokens").exists()


def test_text_split_tokenizer_and_its_options_are_in_the_key(texts, text_files, cache, tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("one\ntwo\n")
    trained = TrainedBPE(vocab_size=257, source=texts(["ab"]), sample_bytes=10)
    trained.save(tmp_path / "saved")
    config = json.loads((tmp_path / "saved" / "tokenizer_config.json").read_text())
    same = HFTokenizer(path=str(tmp_path / "saved"), eos=None, vocab_size=257)

    def made(*arguments):
        before = len(folders(cache)) if (cache / "tokens").exists() else 0
        tokenize(*arguments)
        return len(folders(cache)) - before

    assert made(text_files(path), BYTES) == 1
    assert made(text_files(path), BYTES) == 0
    assert made(text_files(path, held_out=0.5, split="train"), BYTES) == 1
    assert made(text_files(path, held_out=0.5, split="held_out"), BYTES) == 1
    assert made(text_files(path), trained) == 1
    assert made(text_files(path), same) == 0
    (tmp_path / "saved" / "tokenizer_config.json").write_text(json.dumps({**config, "split_special_tokens": False}))
    assert made(text_files(path), HFTokenizer(path=str(tmp_path / "saved"), eos=None, vocab_size=257)) == 1
    path.write_text("one\nTWO\n")
    assert made(text_files(path), BYTES) == 1


@pytest.mark.parametrize(
    "damage",
    ["truncate", "truncate, same time", "grow", "flip", "empty", "no tokens", "no meta", "bad meta", "old meta"],
)
def test_a_damaged_cache_is_made_again(texts, damage):
    source = texts(["some text", "and more"])
    first = tokenize(source, BYTES)
    path, meta = first.folder / "tokens.bin", first.folder / "meta.json"
    data = path.read_bytes()
    changed = {
        "truncate": data[:-2],
        "truncate, same time": data[:-2],
        "grow": data + b"\0\0",
        "flip": bytes([data[0], data[1] ^ 1]) + data[2:],
        "empty": b"",
    }
    if damage in changed:
        written = path.stat().st_mtime_ns
        path.write_bytes(changed[damage])
        if damage == "truncate, same time":
            os.utime(path, ns=(written, written))
    elif damage == "no tokens":
        path.unlink()
    elif damage == "no meta":
        meta.unlink()
    else:
        meta.write_text("{" if damage == "bad meta" else "{}")
    again = tokenize(source, BYTES)
    assert source.reads == 2
    assert again.array.tobytes() == data == path.read_bytes()
    assert tokenize(source, BYTES).fingerprint == first.fingerprint
    assert source.reads == 2


def test_a_copied_cache_is_verified_and_used(texts):
    source = texts(["some text"])
    first = tokenize(source, BYTES)
    os.utime(first.folder / "tokens.bin", ns=(1, 1))  # as a copy has another time
    assert tokenize(source, BYTES).fingerprint == first.fingerprint
    assert source.reads == 1


def test_an_interrupted_build_leaves_nothing_and_what_a_killed_one_left_is_removed(texts, cache):
    class Interrupted(type(BYTES)):
        def encode_batch(self, texts):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        tokenize(texts(["ab"]), Interrupted(vocab_size=257))
    assert folders(cache) == []
    file = tokenize(texts(["ab"]), BYTES)
    left = file.folder.parent / f".{file.folder.name}.killed"
    left.mkdir()
    (left / "tokens.bin").write_bytes(bytes(1000))
    (file.folder / "meta.json").unlink()
    tokenize(texts(["ab"]), BYTES)
    assert folders(cache) == [file.folder]


RACER = """
import sys, time
from forgather_dsl.data import tokens
from forgather_dsl.data.sources import TextFiles
from forgather_dsl.data.tokenizers import Bytes
class Slow(Bytes):
    def encode_batch(self, texts):
        print("encoding")
        time.sleep(1)
        return super().encode_batch(texts)
source = TextFiles(paths=(sys.argv[1],), encoding="utf-8", separator=None, split="all", held_out=0.0)
if sys.argv[2] == "no locks":
    tokens.cache.fcntl = None
print(tokens.tokenize(source, Slow(vocab_size=257)).fingerprint)
"""


@pytest.mark.parametrize("locks", ["locks", "no locks"])
def test_processes_that_race_agree_and_with_locks_only_one_works(tmp_path, cache, locks):
    (tmp_path / "a.txt").write_text("text")
    racers = [
        subprocess.Popen([sys.executable, "-c", RACER, tmp_path / "a.txt", locks], stdout=subprocess.PIPE, text=True)
        for _ in range(3)
    ]
    outputs = [racer.communicate()[0].split() for racer in racers]
    assert [racer.returncode for racer in racers] == [0, 0, 0]
    assert len({output[-1] for output in outputs}) == 1
    encoded = sum(output.count("encoding") for output in outputs)
    assert encoded == 1 if locks == "locks" else encoded >= 1
    (folder,) = folders(cache)
    assert {path.name for path in folder.iterdir()} == {"tokens.bin", "meta.json"}


def test_the_cache_lies_where_the_environment_says(monkeypatch, tmp_path):
    monkeypatch.setenv("FORGATHER_CACHE", str(tmp_path / "mine"))
    assert cache_module.cache_root() == tmp_path / "mine"
    monkeypatch.delenv("FORGATHER_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_module.cache_root() == tmp_path / "xdg" / "forgather_dsl"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_module.cache_root() == tmp_path / ".cache" / "forgather_dsl"


def test_a_cache_that_cannot_be_written_says_what_to_do(texts, tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match="set FORGATHER_CACHE to a folder that can be written") as caught:
        tokenize(texts(["ab"]), BYTES, cache_dir=tmp_path / "file")
    assert caught.value.exit_code == 4


def test_no_text_is_an_error_that_leaves_no_cache(texts, cache):
    with pytest.raises(UserError, match="no text in split 'all'"):
        tokenize(texts(["", ""]), BYTES)
    assert folders(cache) == []


# ---- the compression baseline


def test_gzip_bits_per_byte_is_that_of_gzip_9(texts):
    corpus = [f"line {i} of this é text\n" * (i % 7) for i in range(200)]
    data = "".join(corpus).encode()
    expected = 8 * len(gzip.compress(data, 9)) / len(data)
    assert gzip_bits_per_byte(texts(corpus)) == expected
    assert tokenize(texts(corpus), BYTES).gzip_bits_per_byte is None
    source = texts(corpus, "held_out", 0.5)
    data = "".join(source.documents()).encode()
    expected = 8 * len(gzip.compress(data, 9)) / len(data)
    assert tokenize(source, BYTES).gzip_bits_per_byte == gzip_bits_per_byte(source) == expected
    assert tokenize(source, BYTES).gzip_bits_per_byte == expected  # from the cache
    assert math.isnan(gzip_bits_per_byte(texts([])))


def test_asking_for_the_size_does_not_end_the_stream():
    size, data = GzipSize(), b"some text " * 100
    size.add(data)
    assert size.bits_per_byte() == size.bits_per_byte() == 8 * len(gzip.compress(data, 9)) / len(data)
    size.add(data)
    assert size.bits_per_byte() == 8 * len(gzip.compress(data * 2, 9)) / len(data * 2)


# ---- the corpus of the first run


def test_the_stdlib_is_learned_and_encoded_once(monkeypatch):
    source = Stdlib(split="train", held_out=0.05)
    tokenizer = TrainedBPE(vocab_size=4096, source=source, sample_bytes=1_000_000)
    train = tokenize(source, tokenizer)
    held_out = tokenize(source.with_split("held_out"), tokenizer)
    assert train.num_bytes + held_out.num_bytes == sum(
        len(text.encode()) for text in source.with_split("all").documents()
    )
    assert held_out.gzip_bits_per_byte is not None
    assert 1.5 < held_out.gzip_bits_per_byte < 2.6
    for learned_or_encoded in ((TrainedBPE, "_train"), (tokens, "_write"), (Stdlib, "all_documents")):
        monkeypatch.setattr(*learned_or_encoded, lambda *a: pytest.fail("the text was read again"))
    again = TrainedBPE(vocab_size=4096, source=source, sample_bytes=1_000_000)
    assert tokenize(source, again).fingerprint == train.fingerprint
