"""Schedules as CSV: ours into torch, torch's into ours, and what is no schedule."""

from __future__ import annotations

import re

import pytest
from test_schedules import everything, our_rows
from torch_schedules import torch_rows, torch_schedule

from forgather_dsl.plan.schedules import Action, check, dualpipe_v, from_csv, from_file, interleaved, to_csv

TORCH = [
    ("Interleaved1F1B", 2),
    ("InterleavedZeroBubble", 1),
    ("InterleavedZeroBubble", 2),
    ("ZBVZeroBubble", 2),
    ("DualPipeV", 2),
]


@pytest.mark.parametrize("name", everything())
def test_torch_loads_what_we_write_and_we_read_what_it_dumps(name, tmp_path):
    ours = everything()[name](4, 8)
    chunks = ours.num_stages // 4
    theirs = torch_schedule("Interleaved1F1B", 4, 8, chunks)  # its own order is replaced by the file's
    (tmp_path / "ours.csv").write_text(to_csv(ours))
    theirs._load_csv(str(tmp_path / "ours.csv"))
    assert tuple(theirs.stage_index_to_group_rank[stage] for stage in range(ours.num_stages)) == ours.placement
    for form in ("compute_only", "compute_comms"):
        theirs._dump_csv(str(tmp_path / "theirs.csv"), form)
        back = from_file(str(tmp_path / "theirs.csv"))
        assert (back.name, back.actions, back.placement) == ("theirs.csv", ours.actions, ours.placement)
    assert "SEND_F" in (tmp_path / "theirs.csv").read_text()


@pytest.mark.parametrize("form", ["compute_only", "compute_comms"])
@pytest.mark.parametrize(("name", "chunks"), TORCH)
def test_torchs_file_of_a_named_schedule_is_a_valid_one_of_ours(name, chunks, form, tmp_path):
    torch_schedule(name, 4, 8, chunks)._dump_csv(str(tmp_path / "theirs.csv"), form)
    found = from_file(str(tmp_path / "theirs.csv"))
    check(found)
    assert our_rows(found) == torch_rows(name, 4, 8, chunks)


def test_an_overlapped_pair_is_its_two_actions(tmp_path):
    torch_schedule("DualPipeV", 2, 6, 2)._dump_csv(str(tmp_path / "theirs.csv"), "compute_only")
    assert "OVERLAP_F_B" in (tmp_path / "theirs.csv").read_text()
    assert from_file(str(tmp_path / "theirs.csv")).actions == dualpipe_v(2, 6).actions
    assert our_rows(from_csv("0F0,(0F1;0B0)OVERLAP_F_B, ( 0F2 ; 0B1 )OVERLAP_F_B"))[0] == [
        "0F0",
        "0F1",
        "0B0",
        "0F2",
        "0B1",
    ]


def test_torchs_looped_bfs_is_refused_for_its_backward_order(tmp_path):
    torch_schedule("LoopedBFS", 2, 4, 2)._dump_csv(str(tmp_path / "theirs.csv"), "compute_only")
    with pytest.raises(ValueError, match="2B2 on rank 0 comes after the input gradient of microbatch 3"):
        check(from_file(str(tmp_path / "theirs.csv")))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("0F0,0SEND_X0", "row 1: '0SEND_X0': write one row for each rank"),
        ("0F0,(0F1;0Q0)OVERLAP_F_B\n1F0,F0", "row 1: '(0F1;0Q0)OVERLAP_F_B', row 2: 'F0': write"),
        ("0F0,a,b,c,d,e", "row 1: 'a', row 1: 'b', row 1: 'c' (and 2 more): write"),
        ("0F0,0B0\n0F1,0B1", "0F1 is on rank 1, but stage 0 lives on rank 0"),
        ("3F0,1B0", "no rank runs stage 0, 2 of 4"),
        ("", "no actions"),
    ],
)
def test_csv_that_is_not_a_schedule_says_where(text, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        from_csv(text)


def test_csv_skips_empty_cells_and_what_spreadsheets_add(tmp_path):
    assert from_csv("0F0,,0B0,\n").actions == ((Action(0, "F", 0), Action(0, "B", 0)),)
    file = tmp_path / "saved.csv"
    file.write_bytes("\ufeff".encode() + to_csv(interleaved(2, 4, 2)).replace("\n", ",,\r\n").encode())
    assert from_file(str(file)).actions == interleaved(2, 4, 2).actions


def test_a_file_that_cannot_be_read_is_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bits.csv").write_bytes(b"0F0,\xff")
    for path, message in (
        ("none.csv", f"none.csv cannot be read in {tmp_path}: No such file"),
        (str(tmp_path), "cannot be read: Is a directory"),
        ("bits.csv", "bits.csv is no text: byte 4 is not UTF-8"),
    ):
        with pytest.raises(ValueError, match=re.escape(message)):
            from_file(path)
