"""An emitted model beside transformers' LlamaForCausalLM with the same weights, and what emitting costs.

`python benchmarks/test_codegen.py [--rounds 15]` prints three tables: forward, forward and backward, and decoding with each
side's cache; importing; tracing. Both sides are timed in turn, round by round, and a ratio pairs two times of one round:
below 1 the emitted file is faster. Both run SDPA in fp32; logits are compared before anything is timed.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
import types
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from forked import spread, table

from forgather_dsl import Llama
from forgather_dsl.dsl.load import load
from forgather_dsl.interop.families import to_config
from forgather_dsl.interop.tracing import traced

MODEL: Any = Llama(dim=256, num_layers=4, num_heads=8, num_kv_heads=4, ffn_dim=704, vocab_size=4096)
FORWARD, BACKWARD = ((1, 1), (1, 64), (4, 256)), (2, 128)  # batch, tokens
PROMPT, NEW = 64, 64
OURS, THEIRS = "emitted", "transformers"
TARGETS = {"tiny_llama": "experiments/tiny_llama.py:Baseline", "llama7b": "experiments/llama7b.py:PP4OneFOneB"}
IMPORTS = {  # after torch, which both need
    "torch alone": "pass",
    OURS: "import model",
    THEIRS: "from transformers import LlamaForCausalLM",
}
Case = dict[str, Callable[[], Any]]


class Sides:
    """The emitted model, and transformers' with its weights."""

    def __init__(self) -> None:
        from transformers import LlamaConfig, LlamaForCausalLM

        source = traced(MODEL).source
        self.module = types.ModuleType("emitted")
        exec(compile(source.text, "model.py", "exec"), self.module.__dict__)
        self.ours = getattr(self.module, source.build)()
        self.module.draw_weights(self.ours, 0)
        config = {name: value for name, value in to_config(MODEL, 512).items() if name != "architectures"}
        self.theirs: Any = LlamaForCausalLM(LlamaConfig(**config))
        self.theirs.load_state_dict(self.ours.state_dict())
        self.ours.eval()
        self.theirs.eval()
        tokens = self.tokens(2, 64)
        with torch.no_grad():
            apart = (self.ours(tokens) - self.theirs(tokens).logits).abs().max().item()
        if apart > 1e-4:
            raise ValueError(f"the two models are {apart} apart")

    def tokens(self, batch: int, length: int) -> torch.Tensor:
        """Ids, the same every time."""
        return torch.randint(0, MODEL.vocab_size, (batch, length), generator=torch.Generator().manual_seed(0))

    def forward(self, batch: int, length: int) -> Case:
        """Logits without gradients."""
        x = self.tokens(batch, length)
        return {
            OURS: torch.inference_mode()(lambda: self.ours(x)),
            THEIRS: torch.inference_mode()(lambda: self.theirs(x, use_cache=False).logits),
        }

    def backward(self, batch: int, length: int) -> Case:
        """Logits, the same loss of both, gradients."""
        x = self.tokens(batch, length)

        def step(model: Any, logits: Callable[[], torch.Tensor]) -> None:
            F.cross_entropy(logits()[:, :-1].flatten(0, 1), x[:, 1:].flatten()).backward()
            model.zero_grad(set_to_none=True)

        return {
            OURS: lambda: step(self.ours, lambda: self.ours(x)),
            THEIRS: lambda: step(self.theirs, lambda: self.theirs(x, use_cache=False).logits),
        }

    def decode(self, batch: int) -> Case:
        """A prompt, then token by token with a cache; what each side has to do it, without generate()."""
        from transformers import DynamicCache
        from transformers.modeling_outputs import CausalLMOutputWithPast

        x = self.tokens(batch, PROMPT)
        of_24 = "cache" in CausalLMOutputWithPast.__dataclass_fields__  # transformers 5.24 renamed it
        name = "cache" if of_24 else "past_key_values"

        @torch.inference_mode()
        def run(step: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
            token = step(x)[:, -1:].argmax(-1)
            for _ in range(NEW - 1):
                token = step(token)[:, -1:].argmax(-1)
            return token

        def ours() -> torch.Tensor:
            cache = self.module.KVCache()
            return run(lambda new: self.ours(new, None, cache))

        def theirs() -> torch.Tensor:
            past = DynamicCache()
            return run(lambda new: self.theirs(new, use_cache=True, **{name: past}).logits)

        return {OURS: ours, THEIRS: theirs}

    def cases(self) -> dict[str, Case]:
        """Everything that is timed, by what it says in the table."""
        found = {f"forward ({b}, {n})": self.forward(b, n) for b, n in FORWARD}
        found[f"forward and backward {BACKWARD}"] = self.backward(*BACKWARD)
        return found | {f"{PROMPT} tokens, then {NEW} one by one, batch {b}": self.decode(b) for b in (1, 4)}


def in_turns(case: Case, rounds: int) -> dict[str, list[float]]:
    """Seconds of each side, round by round; one round takes as many calls as fill 50 ms."""
    names, seconds = list(case), {name: [] for name in case}
    for name in names:
        case[name]()
    start = time.perf_counter()
    case[names[0]]()
    calls = max(1, round(0.05 / (time.perf_counter() - start)))
    for turn in range(rounds):
        for name in names[turn % 2 :] + names[: turn % 2]:
            start = time.perf_counter()
            for _ in range(calls):
                case[name]()
            seconds[name].append((time.perf_counter() - start) / calls)
    return seconds


def speeds(rounds: int) -> str:
    """Milliseconds and ratios."""
    rows = []
    for name, case in Sides().cases().items():
        seconds = in_turns(case, rounds)
        ratios = [a / b for a, b in zip(seconds[OURS], seconds[THEIRS], strict=True)]
        rows.append([name, *(spread([1e3 * s for s in seconds[side]], 2) for side in case), spread(ratios, 2)])
    return table(["", f"{OURS}, ms", f"{THEIRS}, ms", "ratio"], rows)


def imports(rounds: int) -> str:
    """Seconds that `import` takes in a new process, torch counted apart."""
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in IMPORTS}
    with tempfile.TemporaryDirectory() as folder:
        with open(os.path.join(folder, "model.py"), "w", encoding="utf-8") as file:
            file.write(traced(MODEL).source.text)
        environment = os.environ | {"PYTHONPATH": folder}
        for turn in range(rounds + 1):
            for name, statement in IMPORTS.items():
                code = f"import time; a = time.perf_counter(); import torch; b = time.perf_counter(); {statement}; "
                code += "print(b - a, time.perf_counter() - b)"
                done = subprocess.run(
                    [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
                )
                if turn:  # the first compiles and fills the page cache
                    first, then = map(float, done.stdout.split())
                    found[name].append((first, then))
    rows = [[name, *(spread([pair[i] for pair in pairs], 3) for i in (0, 1))] for name, pairs in found.items()]
    return table(["", "torch, s", "then, s"], rows)


def tracings(rounds: int) -> str:
    """Seconds from a spec to the text of its file, and the size of that."""
    rows = []
    for name, target in TARGETS.items():
        model, seconds, text = load(target)().model, [], ""
        for _ in range(rounds):
            start = time.perf_counter()
            text = traced(model).source.text
            seconds.append(time.perf_counter() - start)
        rows.append([name, spread(seconds, 2), str(len(text.splitlines()))])
    return table(["", "s", "lines"], rows)


@pytest.fixture(scope="module")
def cases() -> dict[str, Case]:
    """Of one pair of models."""
    return Sides().cases()


@pytest.mark.parametrize("side", [OURS, THEIRS])
@pytest.mark.parametrize("number", range(len(FORWARD) + 3))
def test_speed(benchmark: Any, cases: dict[str, Case], number: int, side: str) -> None:
    name, case = list(cases.items())[number]
    benchmark.group = name
    benchmark.pedantic(case[side], rounds=5, warmup_rounds=1)


@pytest.mark.benchmark(group="from a spec to a file")
@pytest.mark.parametrize("name", TARGETS)
def test_tracing(benchmark: Any, name: str) -> None:
    model = load(TARGETS[name])().model
    benchmark.pedantic(lambda: traced(model), rounds=3, warmup_rounds=1)


@pytest.mark.benchmark(group="importing")
def test_importing(benchmark: Any) -> None:
    benchmark.extra_info["table"] = benchmark.pedantic(imports, args=(3,), rounds=1)


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    a = parser.parse_args()
    torch.set_num_threads(a.threads)
    import transformers

    print(
        f"torch {torch.__version__}, transformers {transformers.__version__}, {a.threads} threads; {MODEL.num_layers} layers, "
        f"dim {MODEL.dim}, vocabulary {MODEL.vocab_size}, fp32; {a.rounds} rounds in turns, median [quartiles]\n"
    )
    print(speeds(a.rounds), imports(max(3, a.rounds // 3)), tracings(max(3, a.rounds // 3)), sep="\n\n")


if __name__ == "__main__":
    main()
