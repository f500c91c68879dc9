"""Replicas of pipelines learn what one process learns, within a stated bound (see replica_ranks.py for the cases)."""

from __future__ import annotations

import pytest
from test_ranks import run


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    return run("replica_ranks.py", tmp_path_factory.mktemp("replicas"))


def right(found, topic):
    cases = {name: wrong for name, wrong in found.items() if name.split()[0] == topic}
    layouts = [f"{topic} {schedule} 2x2" for schedule in ("gpipe", "1f1b", "zb-h1", "interleaved", "zb-v")]
    assert cases.keys() == {f"{topic} 1f1b 4x1", *layouts, f"{topic} 1f1b 1x4"}
    assert {name: wrong for name, wrong in cases.items() if wrong} == {}


def test_replicas_learn_what_one_process_learns(found):
    right(found, "plain")


@pytest.mark.exhaustive
def test_replicas_of_every_kind_of_model(tmp_path):
    found = run("replica_ranks.py", tmp_path, "--all", seconds=900)
    for topic in ("plain", "all", "llama"):
        right(found, topic)


def test_messages_through_the_host_wait_for_their_copies(found):
    cases = {name: wrong for name, wrong in found.items() if name.startswith("staged")}
    assert len(cases) == 2
    assert {name: wrong for name, wrong in cases.items() if wrong} == {}


def test_gradients_that_some_replicas_lack(found):
    assert found["missing gradients"] == []


def test_gradients_keep_their_number_format(found):
    assert found["dtypes"] == []
