"""The other side of child.py: starts it, hands it jobs and takes their results, whatever becomes of it."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import shutil
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any

_LOG = 400  # last characters of what a job printed, for messages


class Verifier:
    """A process that has torch alone, for as long as the block lasts."""

    def __init__(self, workers: int) -> None:
        self._workers = workers
        self._root = ""
        self._process: subprocess.Popen[bytes] | None = None
        self._lines: queue.Queue[dict[str, Any] | None] = queue.Queue()
        self._results: dict[str, dict[str, Any]] = {}
        self._made = 0

    def __enter__(self) -> Verifier:
        self._root = tempfile.mkdtemp(prefix="codegen-")
        return self

    def __exit__(self, *_: object) -> None:
        process = self._process
        if process is not None and process.stdin is not None:
            with contextlib.suppress(OSError):
                process.stdin.close()  # at which it ends
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        shutil.rmtree(self._root, ignore_errors=True)

    def folder(self) -> str:
        """A new folder for a job."""
        self._made += 1
        path = os.path.join(self._root, str(self._made))
        os.mkdir(path)
        return path

    def submit(self, job: dict[str, Any]) -> None:
        """Hand over a job; the process is started with the first one."""
        process = self._process or self._started()
        assert process.stdin is not None
        with contextlib.suppress(OSError):  # it has ended: `result` says so
            process.stdin.write(json.dumps(job).encode() + b"\n")
            process.stdin.flush()

    def result(self, folder: str) -> dict[str, Any]:
        """What became of a job; waits for it."""
        while folder not in self._results:
            answer = self._lines.get()
            if answer is None:
                self._lines.put(None)
                return {"died": "could not be started or ended early", "log": self._printed(self._root)}
            if "folder" in answer:
                self._results[answer["folder"]] = answer
        return {**self._results.pop(folder), "log": self._printed(folder)}

    def _started(self) -> subprocess.Popen[bytes]:
        setup = {"path": [os.path.abspath(path) for path in sys.path if path], "workers": self._workers}
        command = [sys.executable, "-I", "-W", "ignore", str(Path(__file__).with_name("child.py")), json.dumps(setup)]
        with open(os.path.join(self._root, "log"), "wb") as log:
            process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log)
        self._process = process
        threading.Thread(target=self._read, args=(process,), daemon=True).start()
        return process

    def _read(self, process: subprocess.Popen[bytes]) -> None:
        assert process.stdout is not None
        with process.stdout as lines:
            for line in lines:
                with contextlib.suppress(ValueError):
                    self._lines.put(json.loads(line))
        self._lines.put(None)

    def _printed(self, folder: str) -> str:
        with contextlib.suppress(OSError):
            return Path(folder, "log").read_text(errors="replace").strip()[-_LOG:]
        return ""
