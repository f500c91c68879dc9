"""Targets: files, modules, names; one class however it is reached; what goes wrong says where and what was meant."""

from __future__ import annotations

import importlib
import os
import pickle
import subprocess
import sys
from pathlib import Path
from textwrap import dedent

import pytest

from forgather_dsl.dsl import LoadError, UnknownField, Untrusted, digest, explain, from_dict, load
from forgather_dsl.dsl.load import experiments_in, load_file, loaded_from, split_target

ROOT = str(Path(__file__).parents[2])
BASE = """
from forgather_dsl.dsl import Lazy, patch

class Part(Lazy):
    size: int = 1

class Other(Lazy):
    size: int = 1

class Base(Lazy, abstract=True):
    __root__ = True
    seq_len: int = 128
    part: Part = Part()
"""


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A project folder; what it brings into sys.modules and sys.path goes again."""
    (tmp_path / "pyproject.toml").touch()
    (tmp_path / "trials").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    before = set(sys.modules)
    yield Writer(tmp_path)
    for name in set(sys.modules) - before:
        if str(tmp_path) in str(
            getattr(sys.modules[name], "__file__", "") or getattr(sys.modules[name], "__path__", "")
        ):
            del sys.modules[name]
            sys.modules["forgather_dsl.dsl.load"]._files.pop(name, None)


class Writer:
    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __call__(self, name: str, text: str) -> str:
        (self.folder / name).write_text(dedent(text))
        return name


def test_a_class_is_found_by_file_and_name(project):
    project("trials/base.py", BASE)
    file = project("trials/mine.py", "from trials.base import Base\nclass Mine(Base):\n    seq_len = 5\n")
    assert load(f"{file}:Mine")().seq_len == 5
    assert load(str(project.folder / file)) is load(f"{file}:Mine")
    assert load("trials.mine:Mine") is load(f"{file}:Mine")
    assert load("trials.mine") is load(f"{file}:Mine")
    assert load("trials.base:Base.__name__") == "Base"
    assert explain(load(file)(), "seq_len")[0].where == "trials/mine.py:3"


def test_one_class_whether_loaded_by_path_or_imported_from_a_sibling(project):
    base = project("trials/base.py", BASE)
    mine = load(project("trials/mine.py", "from trials.base import Base\nclass Mine(Base): ...\n"))
    assert load(f"{base}:Base") is mine.__bases__[0]
    second = load(project("trials/second.py", "from .base import Base\nclass Second(Base): ...\n"))
    assert second.__bases__[0] is mine.__bases__[0]
    import trials.base  # type: ignore[import-not-found]

    assert trials.base.Base is load(f"{base}:Base")
    assert loaded_from("trials.base") == str(project.folder / base)


def test_a_neighbour_is_found_by_its_bare_name_below_a_project_root_too(project):
    """As in a folder that `init` made inside of a clone, and beside a run directory of that name."""
    project("trials/basics.py", BASE)
    (project.folder / "basics").mkdir()
    project("trials/mine.py", "from basics import Base\n\nclass Mine(Base):\n    seq_len = 3\n")
    assert load("trials/mine.py:Mine")().seq_len == 3


def test_one_class_also_for_files_at_the_root_and_without_a_project(project, tmp_path):
    base = project("flat_base.py", BASE)
    mine = load(project("flat_mine.py", "from flat_base import Base\nclass Mine(Base): ...\n"))
    assert load(f"{base}:Base") is mine.__bases__[0]
    loose = tmp_path / "loose"
    loose.mkdir()
    os.unlink(tmp_path / "pyproject.toml")
    (loose / "loose_base.py").write_text(BASE)
    (loose / "loose_mine.py").write_text("from loose_base import Base\nclass Mine(Base): ...\n")
    assert load("loose/loose_mine.py").__bases__[0] is load("loose/loose_base.py:Base")


def test_two_files_of_one_name_are_two_modules(project):
    for folder in ("one", "two"):
        (project.folder / folder).mkdir()
        (project.folder / folder / "pyproject.toml").touch()
        project(
            f"{folder}/same_name.py",
            BASE + f"class Mine(Base):\n    seq_len = {len(folder + folder[0] * (folder == 'two'))}\n",
        )
    first, second = load("one/same_name.py:Mine"), load("two/same_name.py:Mine")
    assert first is not second
    assert (first().seq_len, second().seq_len) == (3, 4)
    assert load("one/same_name.py:Mine") is first


def test_a_file_with_the_name_of_an_installed_module_does_not_replace_it(project):
    project("json.py", BASE + "class Mine(Base): ...\n")
    mine = load("json.py:Mine")
    assert mine.__name__ == "Mine"
    assert importlib.import_module("json").__name__ == "json"
    assert hasattr(sys.modules["json"], "dumps")


def test_a_file_is_loaded_once_and_registered_before_it_runs(project):
    """Edge 26: pickle and inspect need the module in sys.modules while it runs, and after."""
    file = project(
        "trials/my-file.py",
        BASE
        + "import sys, inspect\nseen = sys.modules[__name__].__file__\nlines = inspect.getsource(Base)\nclass Mine(Base): ...\n",
    )
    module = load_file(file)
    assert module.seen == str(project.folder / file)
    assert module.lines.startswith("class Base")
    assert load_file(str(project.folder / file)) is module
    assert sys.modules[module.__name__] is module
    assert [cls.__name__ for cls in experiments_in(module)] == ["Base", "Mine"]


@pytest.mark.parametrize("name", ["trials/broken.py", "trials/bro-ken.py"])
def test_a_file_that_fails_leaves_nothing_behind_and_can_be_tried_again(project, name):
    """Edge 26, continued: else the second load returns half a module."""
    project(name, BASE + "raise RuntimeError('not today')\n")
    before = set(sys.modules)
    for _ in range(2):
        with pytest.raises(LoadError, match=r"does not import: RuntimeError: not today \(trials/bro.*py:14\)"):
            load(name)
    assert not {m for m in set(sys.modules) - before if "bro" in m}
    assert loaded_from("trials.broken") is None
    project(name, BASE + "class Mine(Base): ...\n")
    assert load(name).__name__ == "Mine"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x = (\n", r"never closed \(trials/bad.py:1\)"),
        ("import nowhere_to_be_found\n", r"No module named 'nowhere_to_be_found' \(trials/bad.py:1\)"),
        ("import sys\nsys.exit(0)\n", r"it exits \(code 0\); put what should run only as a script under if __name__"),
        ("x = 1\n1 / 0\n", r"ZeroDivisionError: division by zero \(trials/bad.py:2\)"),
    ],
)
def test_a_file_that_does_not_import_says_why_and_where(project, text, message):
    project("trials/bad.py", text)
    for target in ("trials/bad.py", "trials.bad"):
        with pytest.raises(LoadError, match=message):
            load(target)


def test_a_mistake_in_an_experiment_stays_what_it_is(project):
    project("trials/bad.py", BASE + "class Mine(Base):\n    seqlen = 3\n")
    with pytest.raises(UnknownField, match=r"did you mean 'seq_len'.*\(trials/bad.py:15\)"):
        load("trials/bad.py:Mine")


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("trials/base.py:Bass", "trials/base.py has no 'Bass'; did you mean 'Base'"),
        ("trials/base.py:sweeep", "did you mean 'sweep'"),
        ("trials/base.py:Zzz", "has no 'Zzz'; it has: Base, Other, Part"),
        ("trials/bas.py", "no file trials/bas.py; did you mean 'base.py'"),
        ("trials/none/bas.py", "no file trials/none/bas.py"),
        ("trials", "trials is a folder; write file.py:Class"),
        ("trials/notes.txt", "is not a Python file"),
        ("trials/nothing", "does not exist; write file.py:Class"),
        ("trials/base.py:my-class", "'my-class' is not the name of a class"),
        ("trials/base.py:", "'' is not the name of a class"),
        ("base", "no module or file named 'base'"),
        ("", "no target; write file.py:Class"),
        ("trials/base.py:Base.nothing", "has no 'Base.nothing'"),
    ],
)
def test_targets_that_do_not_exist_come_with_suggestions(project, target, message):
    project("trials/base.py", BASE + "sweep = [1]\n")
    project("trials/notes.txt", "")
    with pytest.raises(LoadError, match=message):
        load(target)


def test_a_file_alone_means_its_only_concrete_experiment(project):
    text = BASE + dedent("""
    class Mixin(Base):
        part = patch(Part, size=2)
    class Mine(Base):
        "The one."
    """)
    mixin_last = BASE.replace("part: Part = Part()", "part: Lazy = Other()") + dedent("""
    class Mixin(Base):
        part = patch(Part, size=2)
    class Mine(Base):
        part = Part()
    """)
    project("trials/two.py", text)
    project("trials/mixin.py", mixin_last)
    project("trials/none.py", BASE)
    project("trials/parts.py", "from forgather_dsl.dsl import Lazy\nclass Part(Lazy): ...\n")
    assert load("trials/mixin.py").__name__ == "Mine"
    with pytest.raises(LoadError, match=r"defines 2 experiments; choose one: trials/two.py:Mixin, trials/two.py:Mine"):
        load("trials/two.py")
    with pytest.raises(LoadError, match=r"defines no experiment that stands alone; choose one: trials/none.py:Base"):
        load("trials/none.py")
    with pytest.raises(LoadError, match=r"defines no Experiment; write class Mine\(Experiment\)"):
        load("trials/parts.py")


def test_values_can_be_targets_too(project):
    project("trials/base.py", BASE + "sweep = [Part(size=n) for n in (1, 2)]\n")
    assert [part.size for part in load("trials/base.py:sweep")] == [1, 2]


@pytest.mark.parametrize(
    ("target", "parts"),
    [
        ("x.py:A", ("x.py", "A")),
        ("x.py", ("x.py", "")),
        (r"C:\x.py:A", (r"C:\x.py", "A")),
        (r"C:\x.py", (r"C:\x.py", "")),
        ("a.b:C.D", ("a.b", "C.D")),
    ],
)
def test_a_target_is_split_at_the_last_colon_before_a_name(target, parts):
    assert split_target(target) == parts


def test_the_language_and_an_experiment_load_without_torch_or_cattrs(project):
    project("trials/base.py", BASE + "class Mine(Base): ...\n")
    code = dedent("""
    import sys
    import forgather_dsl.dsl as dsl
    mine = dsl.load("trials/base.py")()
    dsl.check(mine), dsl.digest(mine), dsl.explain(mine, "part.size"), dsl.graph(mine), dsl.from_dict(dsl.to_dict(mine))
    print([m for m in ("torch", "cattrs", "numpy", "yaml", "transformers") if m in sys.modules])
    dsl.override(mine, {"seq_len": "3"})
    print([m for m in ("torch", "cattrs") if m in sys.modules])
    """)
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": ROOT}, capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines() == ["[]", "['cattrs']"]


def test_a_script_can_define_load_pickle_and_explain_its_own_classes(project):
    script = project(
        "trials/script.py",
        BASE
        + dedent("""
        class Mine(Base):
            seq_len = 7

        if __name__ == "__main__":
            import pickle
            from forgather_dsl.dsl import explain, load, override, replace
            mine = Mine(part=patch(Part, size=4))
            assert load(__file__ + ":Mine") is Mine
            assert pickle.loads(pickle.dumps(mine)) == mine
            assert type(pickle.loads(pickle.dumps(override(mine, {"seq_len": "9"})))) is Mine
            print(explain(mine, "seq_len")[0].where, load(__file__).__name__, mine.part.size)
        """),
    )
    done = subprocess.run(
        [sys.executable, script], env={**os.environ, "PYTHONPATH": ROOT}, capture_output=True, text=True, check=False
    )
    assert done.stderr == ""
    assert done.stdout.split() == ["trials/script.py:16", "Mine", "4"]


def test_the_digest_of_a_loaded_experiment_does_not_know_how_it_was_reached(project):
    project("trials/base.py", BASE + "class Mine(Base):\n    kind: type = Part\n")
    by_path = digest(load("trials/base.py:Mine")())
    code = "from forgather_dsl.dsl import *; print(digest(load('trials.base:Mine')()))"
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": ROOT}, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == by_path


def test_a_module_name_that_is_a_file_here_is_recognised(project):
    project("lonely_file.py", BASE)
    project.folder.joinpath("sub").mkdir()
    with pytest.raises(LoadError, match=r"no module or file named 'lonely_file'; is it the file lonely_file.py\?"):
        load("lonely_file")


def test_a_file_younger_than_the_last_look_at_its_folder_is_found_under_its_dotted_name(project):
    folder = project.folder / "trials"
    load(project("trials/base.py", BASE) + ":Base")
    looked = folder.stat().st_mtime_ns
    file = project("trials/young.py", "from trials.base import Base\nclass Young(Base): ...\n")
    os.utime(folder, ns=(looked, looked))  # as if both were written in one tick of the file system's clock
    assert load(file).__module__ == "trials.young"


def test_a_name_that_data_gave_stays_inert_in_a_pickle_even_where_its_file_is_loaded(project):
    load(project("trials/base.py", BASE) + ":Base")
    data = {"$type": "x:M", "$base": "forgather_dsl.dsl.lazy:Lazy", "f": {"$object": "trials.base:Part"}}
    with pytest.raises(Untrusted):
        pickle.loads(pickle.dumps(from_dict(data))).f()
