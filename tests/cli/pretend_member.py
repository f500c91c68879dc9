"""Stands in for `forgather_dsl.runs.member` where a test is about the sweep: what it is told decides how it ends.

By `steps`: 13 fails with two lines, 14 dies of a signal, 15 waits for SIGTERM and has then saved. Without the package: it starts
in a hundredth of a second.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from typing import Any


def main() -> int:
    said = json.load(sys.stdin)
    out, steps = said["options"]["out"], said["config"]["steps"]
    os.makedirs(out, exist_ok=True)
    with open(os.path.join(out, "environment.json"), "w", encoding="utf-8") as file:
        facts = {name: os.environ.get(name) for name in ("OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES")}
        json.dump({"sweep": said["options"]["beside"], "pid": os.getpid(), "facts": facts, "began": time.time()}, file)
    if steps == 13 and not os.path.exists("repaired"):
        print("error: the data is gone\nwrite another path", file=sys.stderr)
        return 4
    if steps == 14:
        os.kill(os.getpid(), signal.SIGKILL)
    if steps == 15 and not os.path.exists("repaired"):
        return _wait(out)
    with open(os.path.join(out, "metrics.jsonl"), "w", encoding="utf-8") as file:
        lr = said["config"]["optimizer"]["lr"]
        file.write(json.dumps({"step": steps, "loss": lr}) + "\n")
    with open(os.path.join(out, "config.json"), "w", encoding="utf-8") as file:
        json.dump(said["config"], file)
    time.sleep(0.2)
    return 0


def _wait(out: str) -> int:
    def stop(*_: Any) -> None:
        print("error: interrupted at step 5; saved step-00000005", file=sys.stderr)
        sys.exit(130)

    signal.signal(signal.SIGTERM, stop)
    with open(os.path.join(out, "waits"), "w", encoding="utf-8"):
        pass
    time.sleep(60)
    return 1


if __name__ == "__main__":
    sys.exit(main())
