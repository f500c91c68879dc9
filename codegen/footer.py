"""What stands below the definitions: building the model with the traced arguments, and loading weights with torch alone."""

from __future__ import annotations

from collections.abc import Mapping

from .reflow import WIDTH

_LOAD = '''
def load_model(path: str = "model.safetensors", device: str = "cpu") -> {root}:
    """The model with the weights of a safetensors file, in eval mode.

    Raises `ValueError` when the file is cut short, and `RuntimeError` when its names or shapes are not the model's.
    """
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
        size = file.seek(0, 2)
    header.pop("__metadata__", None)
    if size < 8 + length + max((entry["data_offsets"][1] for entry in header.values()), default=0):
        raise ValueError(f"{{path}} is cut short at {{size}} bytes")
    data = torch.from_file(path, shared=False, size=size, dtype=torch.uint8)
    state = {{}}
    for name, entry in header.items():
        start, end = (8 + length + offset for offset in entry["data_offsets"])
        dtype = {dtypes}[entry["dtype"]]
        state[name] = data[start:end].clone().view(dtype).reshape(entry["shape"])
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
    return f'def build_model() -> {root}:\n    """The model as it was traced, with fresh weights."""\n    return {call}\n'


def load_text(root: str, tied: Mapping[str, str], torch: str, json: str) -> str:
    """`load_model`, which reads a safetensors file; `torch` and `json` are the names of these modules in the file."""
    table = "    dtypes = {\n" + "".join(f'        "{k}": {torch}.{v},\n' for k, v in _DTYPES.items()) + "    }\n"
    body = _LOAD.format(root=root, dtypes="dtypes", tied=_tied_text(tied)).lstrip("\n")
    body = body.replace("    state = {}\n", table + "    state = {}\n")
    return body.replace("torch.from_file", f"{torch}.from_file").replace("dtype=torch.uint8", f"dtype={torch}.uint8").replace(
        "json.loads", f"{json}.loads"
    )


def _tied_text(tied: Mapping[str, str]) -> str:
    """Weights that are one tensor are stored once."""
    lines: list[str] = []
    for name, source in tied.items():
        line = f'    state.setdefault("{name}", state["{source}"])\n'
        if len(line) > WIDTH + 1:
            line = f'    state.setdefault(\n        "{name}", state["{source}"]\n    )\n'
        lines.append(line)
    return "".join(lines)
