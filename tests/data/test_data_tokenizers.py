"""Every text comes back exactly, a trained vocabulary has the size asked for, and transformers agrees on ids."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from forgather_dsl.data import bpe, tokenizer_files
from forgather_dsl.data.sources import Stdlib
from forgather_dsl.data.tokenizers import (
    Bytes,
    HFTokenizer,
    TokenizerFile,
    TrainedBPE,
    count_tokens,
    load_tokenizer,
)
from forgather_dsl.errors import UserError

WORDS = "def return class self value index result length import from while append parse token".split()  # noqa: SIM905
AWKWARD = "<|endoftext|> \r\n\t  \x00 é 日本 🙂 \u200b\ufeff \U0010ffff <s>"


def corpus(seed: int = 0, documents: int = 60) -> list[str]:
    rng = random.Random(seed)
    return ["".join(rng.choice(WORDS) + rng.choice([" ", "\n", "(", "_"]) for _ in range(80)) for _ in range(documents)]


@pytest.fixture
def trained(texts):
    def make(vocab_size=300, documents=None, sample_bytes=100_000, **split) -> TrainedBPE:
        source = texts(documents or corpus(), **split)
        return TrainedBPE(vocab_size=vocab_size, source=source, sample_bytes=sample_bytes)

    return make


def error_of(function) -> str:
    with pytest.raises(UserError) as caught:
        function()
    return str(caught.value)


# ---- round trips


@pytest.fixture(scope="module")
def both(texts, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FORGATHER_CACHE", str(tmp_path_factory.mktemp("cache")))
        trained = TrainedBPE(vocab_size=300, source=texts(corpus()), sample_bytes=100_000)
        _ = trained.loaded
    folder = tmp_path_factory.mktemp("saved")
    trained.save(folder)
    return [trained, Bytes(vocab_size=257), load_tokenizer(folder)]


@settings(deadline=None, max_examples=300)
@given(text=st.text(st.characters(exclude_categories=["Cs"])) | st.text(st.sampled_from(AWKWARD), max_size=40))
def test_any_text_comes_back_exactly(both, text):
    for tokenizer in both:
        ids = tokenizer.encode(text)
        assert tokenizer.decode(ids) == text
        assert all(0 <= i < tokenizer.vocab_size for i in ids)
        assert tokenizer.eos_id not in ids
    assert both[1].encode(text) == list(text.encode())


def test_the_name_of_the_boundary_in_a_text_is_text(both):
    for tokenizer in both:
        text = "a<|endoftext|>b"
        assert tokenizer.eos_id not in tokenizer.encode(text)
        assert tokenizer.decode(tokenizer.encode(text)) == text
        assert tokenizer.decode([tokenizer.eos_id]) == "<|endoftext|>"


def test_broken_utf8_decodes_to_replacement_characters(both):
    for tokenizer in both:
        ids = tokenizer.encode("é")
        if len(ids) > 1:
            assert tokenizer.decode(ids[:1]) == "\ufffd"


# ---- training


@pytest.mark.parametrize("vocab_size", [257, 258, 300, 320])
def test_the_vocabulary_has_exactly_the_size_asked_for(trained, vocab_size):
    tokenizer = trained(vocab_size)
    assert sorted(tokenizer.loaded.backend.get_vocab().values()) == list(range(vocab_size))
    assert tokenizer.eos_id == 0
    assert tokenizer.vocab_size == vocab_size


def test_training_learns_words(trained):
    tokenizer = trained(320)
    text = "class index(self, value)"
    assert len(tokenizer.encode(text)) < len(text) / 2


def test_too_small_a_sample_says_how_far_it_got_and_what_to_write(trained):
    said = error_of(lambda: trained(5000).digest)
    assert "write vocab_size=" in said
    assert "not 5000" in said
    assert said.endswith("or give it more text.")
    reached = int(said.split("write vocab_size=")[1].split()[0])
    assert trained(reached).encode("def")
    assert f"give {reached} tokens" in error_of(lambda: trained(reached + 1).digest)


def test_too_small_a_part_of_a_larger_corpus_asks_for_a_larger_part(trained):
    size = sum(map(len, corpus()))
    said = error_of(lambda: trained(320, sample_bytes=400).digest)
    assert f"sample_bytes=4000 (the corpus has {size})" in said


def test_sizes_without_room_are_refused_at_once(trained):
    assert "write at least that, or Bytes()" in error_of(lambda: trained(256))
    assert "such as 1_000_000" in error_of(lambda: trained(300, sample_bytes=0))


def test_training_sees_the_train_split_alone(texts, trained):
    documents = [*corpus(), *(f"zzqx{i} zzqx zzqx\n" for i in range(60))]
    sampled, total = bpe.sample(texts(documents, "train", 0.5), 10**6)
    assert sampled == list(texts(documents, "train", 0.5).documents())
    assert total == sum(map(len, sampled))
    held_out, train = (trained(300, documents, split=side, held_out=0.5) for side in ("held_out", "train"))
    assert held_out.digest == train.digest
    assert train.digest != trained(300, documents).digest


@pytest.mark.parametrize("sample_bytes", [1_000, 10_000, 50_000])
def test_the_sample_is_spread_evenly(texts, sample_bytes):
    source = texts([f"{i:05}\n" * 20 for i in range(2000)])  # 240 kB; each line names its document
    sampled, total = bpe.sample(source, sample_bytes)
    assert total == 240_000
    text = "".join(sampled)
    assert 0.5 * sample_bytes <= len(text) <= 1.1 * sample_bytes
    numbers = [int(line) for line in text.split()]
    tenths = [sum(tenth * 200 <= number < tenth * 200 + 200 for number in numbers) for tenth in range(10)]
    assert min(tenths) > 0
    assert max(tenths) < 1.6 * min(tenths)
    assert numbers == sorted(numbers)


def test_a_small_corpus_is_its_own_sample(texts):
    assert "".join(bpe.sample(texts(["one\ntwo\n", "three"]), 1000)[0]) == "one\ntwo\nthree"


def test_the_same_text_gives_the_same_tokenizer_in_any_process(tmp_path):
    program = (
        "from forgather_dsl.data.sources import Stdlib; from forgather_dsl.data.tokenizers import TrainedBPE;"
        "s = Stdlib(split='train', held_out=0.05);"
        "print(TrainedBPE(vocab_size=1000, source=s, sample_bytes=200_000).digest)"
    )
    digests = set()
    for threads in ("1", "2"):
        env = {**os.environ, "FORGATHER_CACHE": str(tmp_path / threads), "RAYON_NUM_THREADS": threads}
        digests.add(subprocess.run([sys.executable, "-c", program], env=env, capture_output=True, check=True).stdout)
    assert len(digests) == 1


# ---- the cache


def test_a_tokenizer_is_trained_once(texts, cache):
    source = texts(corpus())
    digests = {TrainedBPE(vocab_size=300, source=source, sample_bytes=9000).digest for _ in range(3)}
    assert len(digests) == 1
    assert len([path for path in (cache / "tokenizers").iterdir() if path.is_dir()]) == 1


def test_changed_text_or_parameters_train_anew(trained):
    changed = [trained(), trained(301), trained(sample_bytes=50_000), trained(documents=corpus(1))]
    assert trained(sample_bytes=20_000).digest != trained().digest
    folders = {tokenizer.digest for tokenizer in changed}
    assert len(folders) == 3  # both samples hold the whole corpus, so they agree


@pytest.mark.parametrize("damage", ["truncate", "change", "delete"])
def test_a_damaged_tokenizer_is_trained_again(trained, cache, damage):
    digest = trained().digest
    (path,) = (cache / "tokenizers").glob("*/tokenizer.json")
    text = path.read_text()
    if damage == "truncate":
        path.write_text(text[: len(text) // 2])
    elif damage == "change":
        path.write_text(text.replace('"!":1', '"!":2'))
        assert path.read_text() != text
    else:
        path.unlink()
    assert trained().digest == digest
    assert path.read_text() == text


# ---- saving, and transformers


def test_a_saved_tokenizer_is_the_same(both, tmp_path):
    for i, tokenizer in enumerate(both):
        tokenizer.save(tmp_path / str(i))
        loaded = load_tokenizer(tmp_path / str(i))
        assert loaded.digest == tokenizer.digest
        assert (loaded.vocab_size, loaded.eos_id) == (tokenizer.vocab_size, tokenizer.eos_id)
        assert loaded.encode_batch([AWKWARD, "def"]) == tokenizer.encode_batch([AWKWARD, "def"])


def test_transformers_reads_a_saved_tokenizer_and_gives_the_same_ids(both, tmp_path):
    from transformers import AutoTokenizer

    for i, tokenizer in enumerate(both):
        tokenizer.save(tmp_path / str(i))
        theirs = AutoTokenizer.from_pretrained(tmp_path / str(i))
        assert theirs.eos_token_id == tokenizer.eos_id
        for text in (AWKWARD, *corpus(documents=3)):
            ids = tokenizer.encode(text)
            assert theirs.encode(text, add_special_tokens=False) == ids
            assert theirs.decode(ids) == text


def test_a_folder_without_a_tokenizer_is_told(tmp_path):
    assert error_of(lambda: load_tokenizer(tmp_path)) == f"{tmp_path}: no tokenizer.json here, so no saved tokenizer."


# ---- other people's tokenizers


@pytest.fixture
def llama_like(tmp_path):
    """A folder as the hub has them: special tokens, a post-processor that adds them, truncation, padding, a gap."""
    backend = tokenizers.Tokenizer(tokenizers.models.BPE())
    backend.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=["<s>", "</s>", "<|im_start|>"],
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(corpus(), trainer)
    backend.post_processor = tokenizers.processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 1)]
    )
    backend.enable_truncation(8)
    backend.enable_padding(length=50, pad_id=0, pad_token="<s>")
    backend.save(str(tmp_path / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": {"__type": "AddedToken", "content": "</s>"},
        "chat_template": "{{ x }}",
    }
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    return tmp_path


def test_a_hub_folder_gives_the_ids_of_transformers_without_truncation_padding_or_added_tokens(llama_like):
    from transformers import AutoTokenizer

    ours = HFTokenizer(path=str(llama_like), eos=None, vocab_size=count_tokens(str(llama_like)))
    theirs = AutoTokenizer.from_pretrained(llama_like)
    text = "<|im_start|>user\n" + " ".join(WORDS) * 5
    ids = ours.encode(text)
    assert len(ids) > 50
    assert ids == theirs.encode(text, add_special_tokens=False, truncation=False, padding=False)
    assert ids[0] == theirs.convert_tokens_to_ids("<|im_start|>")
    assert ours.eos_id == theirs.eos_token_id == 1
    assert ours.decode(ids) == text
    assert ours.encode_batch([text, "def"]) == [ids, ours.encode("def")]
    assert len(ours.encode("def")) <= 3


def test_saving_a_hub_tokenizer_keeps_its_chat_template(llama_like, tmp_path):
    HFTokenizer(path=str(llama_like), eos=None, vocab_size=320).save(tmp_path / "saved")
    config = json.loads((tmp_path / "saved" / "tokenizer_config.json").read_text())
    assert (tmp_path / "saved" / "chat_template.jinja").read_text() == "{{ x }}"
    assert config["eos_token"] == "</s>"


def test_counting_agrees_with_the_tokenizer(llama_like, both, tmp_path):
    assert count_tokens(str(llama_like)) == count_tokens(str(llama_like / "tokenizer.json")) == 320
    gap = json.loads((llama_like / "tokenizer.json").read_text())
    gap["added_tokens"].append({**gap["added_tokens"][0], "id": 400, "content": "<late>"})
    (tmp_path / "gap").mkdir()
    (tmp_path / "gap" / "tokenizer.json").write_text(json.dumps(gap))
    assert count_tokens(str(tmp_path / "gap")) == 401
    for tokenizer in both:
        tokenizer.save(tmp_path / "saved")
        assert count_tokens(str(tmp_path / "saved")) == tokenizer.vocab_size
    unigram = tokenizers.Tokenizer(tokenizers.models.Unigram([("a", 0.0), ("b", -1.0)], unk_id=0))
    unigram.save(str(tmp_path / "unigram.json"))
    assert count_tokens(str(tmp_path / "unigram.json")) == 2
    assert "write vocab_size=..." in error_of(lambda: count_tokens("org/name"))
    (tmp_path / "other.json").write_text("{}")
    assert "no vocabulary in it" in error_of(lambda: count_tokens(str(tmp_path / "other.json")))


def test_a_vocabulary_smaller_than_the_tokenizer_is_refused(llama_like):
    assert "its ids need vocab_size=320, not 319." in error_of(
        lambda: HFTokenizer(path=str(llama_like), eos=None, vocab_size=319).eos_id
    )
    assert HFTokenizer(path=str(llama_like), eos=None, vocab_size=384).encode("def")
    assert "its ids need vocab_size=257, not 256." in error_of(lambda: Bytes(vocab_size=256).eos_id)


def test_the_boundary_of_a_file_is_named_or_usual(llama_like):
    path = str(llama_like / "tokenizer.json")
    assert TokenizerFile(path=path, eos=None, vocab_size=320).eos_id == 1
    assert TokenizerFile(path=path, eos="<s>", vocab_size=320).eos_id == 0
    assert error_of(lambda: TokenizerFile(path=path, eos="<im_start>", vocab_size=320).eos_id) == (
        f"{path}: eos='<im_start>' is not in the vocabulary; special tokens here: '<s>', '</s>', '<|im_start|>'. "
        "Did you mean eos='<|im_start|>'?"
    )


def test_files_that_are_no_tokenizers_are_told(llama_like, tmp_path):
    said = error_of(lambda: TokenizerFile(path=str(llama_like / "tokeniser.json"), eos=None, vocab_size=9).loaded)
    assert said.endswith("tokeniser.json: no such tokenizer file. Did you mean 'tokenizer.json'?")
    (tmp_path / "other.json").write_text('{"a": 1}')
    said = error_of(lambda: TokenizerFile(path=str(tmp_path / "other.json"), eos=None, vocab_size=9).loaded)
    assert "not a tokenizer.json" in said
    (llama_like / "tokenizer_config.json").write_text("{")
    assert "tokenizer_config.json: not JSON" in error_of(
        lambda: HFTokenizer(path=str(llama_like), eos=None, vocab_size=320).loaded
    )


def test_an_unnamed_boundary_lists_the_special_tokens(tmp_path):
    backend = tokenizers.Tokenizer(tokenizers.models.BPE(vocab={"a": 0}, merges=[]))
    backend.add_special_tokens(["[END]"])
    backend.save(str(tmp_path / "tokenizer.json"))
    assert error_of(lambda: HFTokenizer(path=str(tmp_path), eos=None, vocab_size=2).loaded) == (
        f"{tmp_path}: which token ends a document? Write eos='...'; special tokens here: '[END]'."
    )


def test_a_folder_of_an_older_format_is_converted(tmp_path):
    signs = {sign: i for i, sign in enumerate(sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet()))}
    (tmp_path / "vocab.json").write_text(json.dumps({**signs, "de": 256, "<|endoftext|>": 257}))
    (tmp_path / "merges.txt").write_text("#version: 0.2\nd e\n")
    (tmp_path / "config.json").write_text('{"model_type": "gpt2"}')
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "GPT2Tokenizer"}')
    tokenizer = HFTokenizer(path=str(tmp_path), eos=None, vocab_size=258)
    assert tokenizer.encode("def") == [256, signs["f"]]
    assert tokenizer.eos_id == 257


def test_a_hub_id_is_fetched_by_file(llama_like, monkeypatch, tmp_path):
    import huggingface_hub
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    def download(repository, name):
        assert repository == "org/name"
        if name == "tokenizer_config.json":
            raise EntryNotFoundError("no such file in this repository")
        return str(llama_like / name)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    assert HFTokenizer(path="org/name", eos="</s>", vocab_size=320).eos_id == 1

    def offline(repository, name):
        raise LocalEntryNotFoundError("cannot reach the hub")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", offline)
    said = error_of(lambda: HFTokenizer(path="org/name", eos="</s>", vocab_size=320).eos_id)
    assert "no such folder, and not to be had from the hub" in said
    assert "cannot reach the hub" in said


def test_the_stdlib_gives_the_default_vocabulary():
    source = Stdlib(split="train", held_out=0.05)
    tokenizer = TrainedBPE(vocab_size=4096, source=source, sample_bytes=1_000_000)
    text = Path(json.__file__).read_text(encoding="utf-8")
    assert 3.0 < len(text) / len(tokenizer.encode(text)) < 5.0
    assert tokenizer_files.USUAL_EOS[0] == tokenizer.loaded.eos
