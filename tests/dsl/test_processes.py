"""Experiments in other processes: pickles name classes by path, carry intent, and say so when they cannot."""

from __future__ import annotations

import math
import os
import pickle
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from textwrap import dedent
from types import MappingProxyType
from typing import Any

import pytest

from forgather_dsl.dsl import ConfigError, Lazy, call, derived, load, override, patch, replace, swap

ROOT = str(Path(__file__).parents[2])


class Part(Lazy[Any]):
    size: int = 1
    function: Callable[..., Any] = math.sqrt


class OtherPart(Part):
    more: int = 2


class Root(Lazy[Any]):
    seq_len: int = 128
    part: Part = Part()
    table: Mapping[str, Any] = MappingProxyType({})
    pair: tuple[Any, ...] = ()
    thing: Any = None

    @derived
    def model(self) -> Part:
        return Part(size=self.seq_len)


def again(value: Any) -> Any:
    return pickle.loads(pickle.dumps(value))


def test_a_pickle_carries_what_was_said_and_not_what_was_computed():
    root = Root(seq_len=3)
    assert root.model.size == 3
    back = again(root)
    assert "model" not in back.__dict__
    assert back == root
    assert replace(back, seq_len=5).model.size == 5


def test_patches_overlays_mappings_and_calls_survive():
    root = Root(
        part=patch(Part, size=7),
        table={"a": (1, {"b": Part(size=2)})},
        pair=(Part(), (Part(size=3),)),
        thing=call("math:sqrt", x=[1]),
    )
    assert again(root) == root
    changed = override(root, {"part.size": "9", "part": "OtherPart", "seq_len": "4", "table.c": "1"})
    back = again(changed)
    assert back == changed
    assert (back.part.size, type(back.part), back.model.size) == (9, OtherPart, 4)
    assert override(back, {"part.size": "1"}).part.size == 1
    assert again(Root(part=swap(OtherPart, more=3))).part.more == 3
    assert again(override(Root(part=Part(size=5)), {"part.function": math.sqrt})).part.size == 5


def test_sharing_survives():
    part = Part()
    back = again(Root(pair=(part, part), part=part))
    assert back.pair[0] is back.pair[1] is back.part


def test_a_class_inside_a_function_says_that_no_other_process_finds_it():
    class Local(Lazy[Any]):
        x: int = 1

    with pytest.raises(
        ConfigError, match=r"Local \(.*test_processes.py:\d+\) is defined inside a function.*top level of its file"
    ):
        pickle.dumps(Local())


def test_a_class_of_a_notebook_says_so_where_it_is_missing():
    code = dedent("""
    import pickle, sys
    from forgather_dsl.dsl import Lazy
    del __builtins__  # nothing
    class Cell(Lazy):
        x: int = 1
    sys.stdout.buffer.write(pickle.dumps(Cell(x=2)))
    """).replace("del __builtins__  # nothing\n", "")
    env = {**os.environ, "PYTHONPATH": ROOT}
    data = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, check=True).stdout
    with pytest.raises(
        ConfigError, match=r"Cell is defined in a notebook or at a prompt.*file of its own and import it"
    ):
        pickle.loads(data)


def test_functions_of_a_file_loaded_by_path_travel_by_that_path(tmp_path):
    """Edge 26, continued: by module name the worker raises ModuleNotFoundError and the pool hangs."""
    file = tmp_path / "my-parts.py"
    file.write_text(
        dedent("""
        from forgather_dsl.dsl import Lazy
        def double(x): return 2 * x
        class Mine(Lazy):
            function: object = None
            size: int = 1
        made = Mine(function=double, size=3)
        """)
    )
    data = pickle.dumps((load(f"{file}:made"), load(f"{file}:Mine")(size=4)))
    code = "import pickle, sys; a, b = pickle.load(sys.stdin.buffer); print(a.function(4), a.size, b.size, type(a) is type(b))"
    env = {**os.environ, "PYTHONPATH": ROOT}
    done = subprocess.run([sys.executable, "-c", code], env=env, input=data, capture_output=True, check=False)
    assert done.stderr == b""
    assert done.stdout.split() == [b"8", b"3", b"4", b"True"]


def test_spawned_workers_receive_experiments_loaded_by_path_and_of_the_script(tmp_path):
    """Edge 26, continued: both kinds, in one pool."""
    (tmp_path / "by-path.py").write_text(
        dedent("""
        from forgather_dsl.dsl import Lazy, derived
        class ByPath(Lazy):
            seq_len: int = 1
            @derived
            def twice(self) -> int:
                return 2 * self.seq_len
        """)
    )
    script = tmp_path / "script.py"
    script.write_text(
        dedent("""
        import multiprocessing, os
        from forgather_dsl.dsl import Lazy, load, override

        class InScript(Lazy):
            seq_len: int = 1

        def work(experiments):
            by_path, own = experiments
            return by_path.twice, own.seq_len, type(own) is InScript

        if __name__ == "__main__":
            by_path = load(os.path.join(os.path.dirname(__file__), "by-path.py") + ":ByPath")
            jobs = [(override(by_path(), {"seq_len": str(n)}), InScript(seq_len=n)) for n in (3, 4)]
            with multiprocessing.get_context("spawn").Pool(1) as pool:
                print(pool.map_async(work, jobs).get(timeout=60))
        """)
    )
    env = {**os.environ, "PYTHONPATH": ROOT}
    done = subprocess.run(
        [sys.executable, str(script)], env=env, capture_output=True, text=True, timeout=100, check=False
    )
    assert done.stderr == ""
    assert done.stdout.strip() == "[(6, 3, True), (8, 4, True)]"
