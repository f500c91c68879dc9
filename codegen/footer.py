"""What stands below the definitions: building the model with the traced arguments, and loading weights with torch alone."""

from __future__ import annotations

from collections.abc import Mapping

from .reflow import WIDTH

_LOAD = '''
def load_model(path: str = "model.safetensors", device: str = "cpu") -> {root}:
    """The model with the weights of a safetensors file, or of an index (.json) of several, in eval mode.

    Raises `ValueError` for a damaged file, and `RuntimeError` when its names or shapes are not the model's.
    """
    paths = [path]
    if path.endswith(".json"):
        with open(path, encoding="utf-8") as index:
            shards = sorted(set({json}.load(index)["weight_map"].values()))
        paths = [{os}.path.join({os}.path.dirname(path), shard) for shard in shards]
    dtypes = {{
{dtypes}    }}
    state = {{}}
    for part in paths:
        size = {os}.path.getsize(part)
        with open(part, "rb") as file:
            start = 8 + int.from_bytes(file.read(8), "little")
            header = {json}.loads(file.read(start - 8)) if 8 < start <= size else {{}}
        header.pop("__metadata__", None)
        if not 8 < start <= size or any(start + entry["data_offsets"][1] > size for entry in header.values()):
            raise ValueError(f"{{part}} is cut short, or no safetensors file: {{size}} bytes")
        data = {torch}.from_file(part, shared=False, size=size, dtype={torch}.uint8)  # read when it is copied
        for name, entry in header.items():
            first, last = (start + offset for offset in entry["data_offsets"])
            values = data[first:last] if first % 8 == 0 else data[first:last].clone()  # a view has to be aligned
            state[name] = values.view(dtypes[entry["dtype"]]).reshape(entry["shape"])
{tied}    model = build_model()
    model.load_state_dict(state, strict=True)
    return model.to(device).eval()
'''
_DTYPES = {
    "F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16", "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2", "I64": "int64", "I32": "int32", "I16": "int16", "I8": "int8", "U8": "uint8", "BOOL": "bool",
}  # fmt: skip


def build_text(root: str, call: str) -> str:
    """`build_model` with the call that makes the model."""
    return (
        f'def build_model() -> {root}:\n    """The model as it was traced, with fresh weights."""\n    return {call}\n'
    )


def load_text(root: str, tied: Mapping[str, str], torch: str, json: str, os: str) -> str:
    """`load_model`, which reads safetensors files; `torch`, `json` and `os` are the names of these modules in the file."""
    table = "".join(f'        "{key}": {torch}.{dtype},\n' for key, dtype in _DTYPES.items())
    return _LOAD.format(root=root, dtypes=table, tied=_tied_text(tied), torch=torch, json=json, os=os).lstrip("\n")


def _tied_text(tied: Mapping[str, str]) -> str:
    """Weights that are one tensor are stored once."""
    lines: list[str] = []
    for name, source in tied.items():
        line = f'    state.setdefault("{name}", state["{source}"])\n'
        if len(line) > WIDTH + 1:
            line = f'    state.setdefault(\n        "{name}", state["{source}"]\n    )\n'
        lines.append(line)
    return "".join(lines)
