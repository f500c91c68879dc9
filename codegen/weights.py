"""Files of tensors in the safetensors format (https://github.com/huggingface/safetensors), written with torch alone."""

from __future__ import annotations

import ctypes
import json
import os
import struct
from collections.abc import Mapping

import torch
from torch import Tensor

from .errors import CodegenError, Problem

DTYPES = {  # as the format spells them
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint64: "U64",
    torch.uint32: "U32",
    torch.uint16: "U16",
    torch.uint8: "U8",
    torch.bool: "BOOL",
    torch.complex64: "C64",
}


def untied(state: Mapping[str, object]) -> dict[str, Tensor]:
    """The tensors of a state dict, those that are one tensor under its first name. Raises CodegenError for others."""
    found: dict[str, Tensor] = {}
    first: dict[tuple[object, ...], str] = {}
    problems: list[Problem] = []
    for name, value in state.items():
        if not isinstance(value, Tensor):
            problems.append(
                Problem(f"the state dict holds {name} of type {type(value).__name__}, which is no tensor", _EXTRA)
            )
        elif value.dtype not in DTYPES or value.layout != torch.strided or value.is_quantized:
            problems.append(Problem(f"{name} is {value.dtype}, {value.layout}, which a file of weights cannot hold"))
        elif value.is_meta:
            problems.append(
                Problem(f"{name} is on the meta device and has no values", "build the model with memory first")
            )
        else:
            key = (value.data_ptr(), value.shape, value.stride(), value.dtype) if value.numel() else (name,)
            if first.setdefault(key, name) == name:
                found[name] = value
    if problems:
        raise CodegenError(problems)
    return found


_EXTRA = "drop get_extra_state, or make it a tensor"


def save(path: str | os.PathLike[str], tensors: Mapping[str, Tensor]) -> None:
    """Write tensors, one after the other through the CPU; the file is complete or not there."""
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    at = 0
    for name, tensor in tensors.items():
        size = tensor.numel() * tensor.element_size()
        header[name] = {
            "dtype": DTYPES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [at, at + size],
        }
        at += size
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # so that the tensors begin aligned
    part = f"{os.fspath(path)}.part"
    with open(part, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for tensor in tensors.values():
            dense = tensor.detach().resolve_conj().resolve_neg().contiguous().cpu()
            size = dense.numel() * dense.element_size()
            if size:
                file.write((ctypes.c_char * size).from_address(dense.data_ptr()))
        file.flush()
        os.fsync(file.fileno())
    os.replace(part, path)
