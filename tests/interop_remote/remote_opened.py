"""Run as a script, with any version of transformers: every check of the folders in one process.

In: the folder of folders, and checks if not all are wanted. Out: the last line printed, JSON: {"version": ..., check: "" or its traceback}.
"""

from __future__ import annotations

import copy
import functools
import importlib.util
import inspect
import json
import sys
import tempfile
import time
import traceback
from pathlib import Path
from typing import Any

import torch
from torch import Tensor


class Blocked:
    """Finds nothing of what the folders must not need."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> None:
        if name.partition(".")[0] in ("forgather_dsl", "codegen"):
            raise ImportError(name)


sys.meta_path.insert(0, Blocked())  # type: ignore[arg-type]
import transformers  # noqa: E402
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, DynamicCache, StaticCache  # noqa: E402

HERE = Path(sys.argv[1])
SIZES = {"tied": 61, "plain": 61, "window": 61, "bf16": 61, "old": 53, "capped": 53, "data": 53}
TIED = {"tied": ["lm_head.weight"], "data": ["head.weight"]}
GENERATE = {"do_sample": False, "pad_token_id": 0, "max_new_tokens": 9}


def tokens(name: str, rows: int = 2, length: int = 11, seed: int = 5) -> Tensor:
    return torch.randint(1, SIZES[name], (rows, length), generator=torch.Generator().manual_seed(seed))


@functools.cache
def shared(name: str) -> Any:
    """A model that no check changes."""
    return opened(name)


def opened(name: str, kind: Any = AutoModelForCausalLM, **options: Any) -> Any:
    """A model of its own."""
    model, info = kind.from_pretrained(
        HERE / name, trust_remote_code=True, output_loading_info=True, **{"dtype": "auto", **options}
    )
    assert not any(info.values()), info
    return model.eval()


def code(name: str) -> Any:
    """The folder's model.py as a module, without transformers."""
    spec = importlib.util.spec_from_file_location(f"alone_{name}", HERE / name / "model.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def alone(name: str, dtype: torch.dtype = torch.float32, file: Path | None = None) -> Any:
    from safetensors.torch import load_file

    model = code(name).build_model()
    state = load_file(file or HERE / name / "model.safetensors")
    missing = model.load_state_dict(state, strict=False)
    assert not missing.unexpected_keys, missing
    assert missing.missing_keys == TIED.get(name, []), missing
    return model.to(dtype).eval()


def refused(match: str, call: Any, *args: Any, **kwargs: Any) -> None:
    said = None
    try:
        call(*args, **kwargs)
    except (ValueError, TypeError, NotImplementedError) as error:
        said = str(error)
    assert said is not None, f"nothing was refused: {match}"
    assert match in said, f"{match!r} is not in {said}"


def close(left: Tensor, right: Tensor, atol: float = 2e-4) -> None:
    torch.testing.assert_close(left, right, rtol=0, atol=atol)


def check_logits_are_those_of_model_py() -> None:
    for name in SIZES:
        expected = alone(name, torch.bfloat16 if name == "bf16" else torch.float32)(tokens(name))
        logits = shared(name)(tokens(name)).logits
        assert logits.dtype == expected.dtype, name
        assert torch.equal(logits, expected), name


def check_other_number_formats() -> None:
    for name in ("tied", "plain", "old"):
        model = opened(name, dtype=torch.bfloat16)
        assert all(p.dtype == torch.bfloat16 for p in model.parameters()), name
        if name != "old":  # whose buffers stay as they were computed
            assert torch.equal(model(tokens(name)).logits, alone(name, torch.bfloat16)(tokens(name))), name
    assert opened("bf16", dtype=torch.float32).dtype == torch.float32


def check_buffers_that_no_file_holds() -> None:
    for dtype in (torch.float32, torch.bfloat16):
        model, expected = opened("old", dtype=dtype).network, alone("old")
        assert torch.equal(model.numbers, expected.numbers)
        assert all(torch.equal(b.kernel, e.kernel) for b, e in zip(model.blocks, expected.blocks, strict=True))


def check_loss() -> None:
    model, x = shared("plain"), tokens("plain")
    labels = x.clone()
    labels[0, :6] = -100
    output = model(x, labels=labels)
    logits = alone("plain")(x)
    by_hand = torch.nn.functional.cross_entropy(
        logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=-100
    )
    close(output.loss, by_hand, 1e-6)
    counted = model(x, labels=labels, num_items_in_batch=torch.tensor(100)).loss
    close(counted, by_hand * (labels[:, 1:] != -100).sum() / 100, 1e-6)
    assert torch.equal(model(x, labels=labels, return_dict=False)[0], output.loss)


def check_padding_on_the_left() -> None:
    for name in ("tied", "plain", "window"):
        model, x = shared(name), tokens(name)
        mask = torch.ones_like(x)
        mask[0, :4] = 0
        padded = model(x, attention_mask=mask)
        close(padded.logits[:1, 4:], model(x[:1, 4:]).logits)
        assert torch.equal(padded.logits[1:], model(x, attention_mask=mask.clone()).logits[1:])
        close(padded.logits[1:], model(x[1:]).logits)
        positions = (mask.cumsum(1) - 1).clamp(min=0)
        assert torch.equal(model(x, attention_mask=mask, position_ids=positions).logits, padded.logits)
        for use_cache in (True, False):
            together = model.generate(x, attention_mask=mask, use_cache=use_cache, **GENERATE)[:, 11:]
            single = [model.generate(row[None], **GENERATE)[0, row.shape[0] :] for row in (x[0, 4:], x[1])]
            assert together.tolist() == [row.tolist() for row in single], (name, use_cache)


def check_padding_on_the_right() -> None:
    for name in ("plain", "window", "old"):
        model, x = shared(name), tokens(name)
        mask = torch.ones_like(x)
        mask[0, 7:] = 0
        assert torch.equal(model(x, attention_mask=mask).logits, model(x).logits), name
        close(model(x, attention_mask=mask).logits[:1, :7], model(x[:1, :7]).logits)


def check_positions() -> None:
    model, x = shared("plain"), tokens("plain")
    packed = torch.tensor([[0, 1, 2, 3, 0, 1, 2, 3, 4, 5, 6], [0, 1, 0, 1, 2, 3, 4, 5, 6, 0, 1]])
    logits = model(x, position_ids=packed).logits
    close(logits[0, :4], model(x[:1, :4]).logits[0])
    close(logits[0, 4:], model(x[:1, 4:]).logits[0])
    close(logits[1, 9:], model(x[1:, 9:]).logits[0])
    assert torch.equal(model(x, position_ids=torch.arange(11)[None]).logits, model(x).logits)
    refused("positions jump", model, x, position_ids=packed, attention_mask=torch.ones_like(x))
    holes = torch.ones_like(x)
    holes[:, 4] = 0
    refused("positions jump", model, x, position_ids=holes.cumsum(1) - 1, attention_mask=holes)
    past = DynamicCache()
    model(x, past_key_values=past)
    refused("where the cache ends", model, x[:, :1], past_key_values=past, position_ids=torch.tensor([[3]]))
    refused("counts positions itself", shared("old"), tokens("old"), position_ids=torch.arange(11)[None] + 3)


def check_refusals() -> None:
    model, old, x = shared("plain"), shared("old"), tokens("plain")
    left = torch.ones_like(x)
    left[0, :2] = 0
    refused("not inputs_embeds", model, inputs_embeds=torch.zeros(1, 2, 48))
    refused("not inputs_embeds", model)
    refused("never writes its weights out", model, x, output_attentions=True)
    refused("token_type_ids", model, x, token_type_ids=torch.zeros_like(x))
    refused("attention_mask has shape", model, x, attention_mask=torch.ones(2, 1, 11, 11))
    refused("attention_mask has shape", model, x, attention_mask=torch.ones(2, 12))
    refused("pad on the right", old, tokens("old"), attention_mask=left)
    refused("has no cache", old, tokens("old"), past_key_values=DynamicCache())
    static = {"max_batch_size": 2} if "max_batch_size" in inspect.signature(StaticCache.__init__).parameters else {}
    refused("DynamicCache", model, x, past_key_values=StaticCache(config=model.config, max_cache_len=32, **static))
    refused("written for 48", opened, "plain", hidden_size=96)
    refused("written for", opened, "plain", model_args={"dim": 96})
    refused("no list of layers", shared("capped"), tokens("capped"), output_hidden_states=True)
    refused("keeps its size", shared("capped").resize_token_embeddings, 99)


def check_cache() -> None:
    for name in ("tied", "plain", "window"):
        model, x = shared(name), tokens(name, length=23)
        whole = model(x).logits
        past, pieces = DynamicCache(), []
        for piece in x.split([9, 1, 1, 5, 7], dim=1):
            output = model(piece, past_key_values=past)
            pieces.append(output.logits)
            assert output.past_key_values is past
        close(torch.cat(pieces, dim=1), whole)
        assert past.get_seq_length() == 23
        assert model(x, use_cache=False).past_key_values is None
        assert model(x).past_key_values.get_seq_length() == 23


def check_greedy_is_our_own() -> None:
    for name in ("tied", "plain", "window"):
        model, x = shared(name), tokens(name)
        with_cache = model.generate(x, **GENERATE)
        assert torch.equal(with_cache, model.generate(x, use_cache=False, **GENERATE)), name
        network, cache, new, added = alone(name), code(name).KVCache(), x, []
        for _ in range(9):
            new = network(new, None, cache)[:, -1:].argmax(-1)
            added.append(new)
        assert torch.equal(with_cache[:, 11:], torch.cat(added, dim=1)), name


def check_greedy_without_a_cache() -> None:
    for name in ("old", "capped"):
        model, network, text = shared(name), alone(name), tokens(name)
        for _ in range(9):
            text = torch.cat((text, network(text)[:, -1:].argmax(-1)), dim=1)
        for use_cache in (None, True, False):
            assert torch.equal(model.generate(tokens(name), use_cache=use_cache, **GENERATE), text), (name, use_cache)
        close(model(text, logits_to_keep=1).logits, model(text).logits[:, -1:])
        assert model.generate(tokens(name), do_sample=False, num_beams=3, pad_token_id=0, max_new_tokens=5).shape == (
            2,
            16,
        )


def check_other_ways_to_generate() -> None:
    model, x = shared("plain"), tokens("plain")
    common = {"pad_token_id": 0, "eos_token_id": 60, "max_new_tokens": 7}  # 4.57 looks prompts up with an end only
    for options in (
        {"do_sample": True, "top_k": 20, "temperature": 0.8},
        {"do_sample": False, "num_beams": 4, "num_return_sequences": 2},
        {"do_sample": True, "num_beams": 3},
    ):
        texts = []
        for use_cache in (True, False):
            torch.manual_seed(3)
            texts.append(model.generate(x, use_cache=use_cache, **options, **common))
        assert torch.equal(*texts), options
    greedy = model.generate(x[:1], do_sample=False, **common)
    guessed = model.generate(x[:1], do_sample=False, prompt_lookup_num_tokens=3, **common)
    assert torch.equal(greedy, guessed)
    assert torch.equal(greedy, model.generate(x[:1], do_sample=False, assistant_model=shared("tied"), **common))
    past = DynamicCache()
    model.generate(x[:1, :6], do_sample=False, past_key_values=past, **{**common, "max_new_tokens": 1})
    assert torch.equal(greedy, model.generate(x[:1], do_sample=False, past_key_values=past, **common))


def check_save_and_load() -> None:
    for name in SIZES:
        model, x = shared(name), tokens(name)
        for options in ({}, {"max_shard_size": "20KB"}):
            with tempfile.TemporaryDirectory() as folder:
                model.save_pretrained(folder, **options)
                again = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True, dtype="auto")
                assert torch.equal(again.eval()(x).logits, model(x).logits), (name, options)
                if not options:
                    dtype = torch.bfloat16 if name == "bf16" else torch.float32
                    other = alone(name, dtype, Path(folder) / "model.safetensors")
                    assert torch.equal(other(x), model(x).logits), name
                elif hasattr(code(name), "load_model"):
                    own = code(name).load_model(f"{folder}/model.safetensors.index.json").to(model.dtype)
                    assert torch.equal(own(x), model(x).logits), name


def check_tied_weights() -> None:
    for model in (shared("tied"), AutoModelForCausalLM.from_config(shared("tied").config, trust_remote_code=True)):
        assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
        assert not any(p.is_meta for p in model.parameters())
    plain = shared("plain")
    assert plain.get_output_embeddings().weight is not plain.get_input_embeddings().weight


def check_from_config() -> None:
    config = AutoConfig.from_pretrained(HERE / "plain", trust_remote_code=True)
    assert config.model_args["rope_scaling"] == {"factor": 2.0}
    assert (config.vocab_size, config.hidden_size, config.num_hidden_layers) == (61, 48, 3)
    torch.manual_seed(7)
    model = AutoModelForCausalLM.from_config(config, trust_remote_code=True)
    torch.manual_seed(7)
    again = AutoModelForCausalLM.from_config(config, trust_remote_code=True)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name]), name
    deviation = model.network.lm_head.weight.std().item()
    assert 0.18 < deviation < 0.22, deviation  # NormalInit(0.2), as in training
    old = AutoModelForCausalLM.from_config(shared("old").config, trust_remote_code=True)
    assert torch.equal(old.network.blocks[0].kernel, alone("old").blocks[0].kernel)


def check_base_model_and_hidden_states() -> None:
    for name in ("plain", "tied"):
        model, base, x = shared(name), opened(name, AutoModel), tokens(name)
        output = model(x, output_hidden_states=True)
        assert len(output.hidden_states) == 4
        assert torch.equal(output.hidden_states[0], model.get_input_embeddings()(x))
        assert torch.equal(model.get_output_embeddings()(output.hidden_states[-1]), output.logits)
        assert torch.equal(base(x).last_hidden_state, output.hidden_states[-1])
        close(model(x, logits_to_keep=2).logits, output.logits[:, -2:], 1e-5)
        close(model(x, logits_to_keep=torch.tensor([1, 4])).logits, output.logits[:, [1, 4]], 1e-5)
    refused("no linear layer", AutoModel.from_pretrained, HERE / "capped", trust_remote_code=True)


def check_gradient_checkpointing() -> None:
    x, gradients = tokens("plain", length=16), []
    for options in (None, {"use_reentrant": False}, {"use_reentrant": True}):
        model = opened("dropout")
        model.train()
        if options is not None:
            model.gradient_checkpointing_enable(options)
            assert model.is_gradient_checkpointing
            refused("twice", model, x, past_key_values=DynamicCache())
        torch.manual_seed(2)
        model(x, labels=x).loss.backward()
        gradients.append({name: p.grad.clone() for name, p in model.named_parameters()})
    for name, gradient in gradients[0].items():
        assert torch.equal(gradient, gradients[1][name]), name
        assert torch.equal(gradient, gradients[2][name]), name
    model.gradient_checkpointing_disable()
    assert not any("forward" in vars(layer) for layer in model.network.model.layers)


def check_training() -> None:
    model, x = opened("tied"), tokens("tied", rows=4, length=16)
    model.train()
    optimizer, losses = torch.optim.AdamW(model.parameters(), lr=3e-3), []
    batch = {"input_ids": x, "attention_mask": torch.ones_like(x), "labels": x}
    for _ in range(12):
        loss = model(**batch, num_items_in_batch=torch.tensor(60))["loss"]
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0], losses
    twin = copy.deepcopy(model).eval()
    assert torch.equal(twin(x).logits, model.eval()(x).logits)
    assert twin.get_output_embeddings().weight is twin.get_input_embeddings().weight


def check_resized_vocabulary() -> None:
    for name in ("tied", "plain", "old", "data"):
        for size in (70, 50):
            model, x = opened(name), tokens(name) % 50
            before = model(x).logits
            model.resize_token_embeddings(size, mean_resizing=False)
            assert model.config.vocab_size == size
            after = model(x).logits
            kept = min(size, before.shape[2])
            assert after.shape[2] == size, (name, after.shape)
            assert torch.equal(after[..., :kept], before[..., :kept]) or torch.allclose(
                after[..., :kept], before[..., :kept], atol=1e-5
            )
            with tempfile.TemporaryDirectory() as folder:
                model.save_pretrained(folder)
                again = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True).eval()
                assert torch.equal(again(x).logits, after), (name, size)


def check_shapes_that_do_not_fit() -> None:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_pretrained(
        HERE / "plain", trust_remote_code=True, vocab_size=64, ignore_mismatched_sizes=True
    )
    weight = model.get_input_embeddings().weight
    assert weight.shape == (64, 48)
    assert bool(weight.isfinite().all())
    assert 0.15 < weight.std().item() < 0.25
    expected = alone("plain").model.norm.weight
    assert torch.equal(model.network.model.norm.weight, expected)


def main() -> dict[str, str]:
    found = {"version": transformers.__version__}
    for name, check in sorted(globals().items()):
        if name.startswith("check_") and (not sys.argv[2:] or name in sys.argv[2:]):
            start = time.process_time()
            try:
                torch.set_grad_enabled(name in ("check_training", "check_gradient_checkpointing"))
                check()
                found[name] = ""
            except Exception:
                found[name] = traceback.format_exc()
            print(f"{name} {time.process_time() - start:.1f} s", file=sys.stderr)
    return found


if __name__ == "__main__":
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    results = main()
    print(json.dumps(results))
