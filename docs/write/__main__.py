"""`python docs/write [reference] [pictures] [gallery]`: write the generated parts of docs/ anew. No torch is imported.

`python docs/write record RUN...` first adds what finished runs of the gallery measured to docs/results.json.

What is written is never edited by hand; `tests/docs/test_written.py` says when it is stale.
"""

from __future__ import annotations

import sys
from pathlib import Path

DOCS = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(DOCS.parent), str(DOCS / "write")]

import gallery_page  # noqa: E402
import reference_pages  # noqa: E402
import schedule_pictures  # noqa: E402

PARTS = {"reference": reference_pages.pages, "pictures": schedule_pictures.pages, "gallery": gallery_page.pages}


def main(names: list[str]) -> int:
    """Write the named parts, or all of them, and take away what they no longer write."""
    if names[:1] == ["record"]:
        gallery_page.record(names[1:])
        names = ["gallery"]
    unknown = set(names) - set(PARTS)
    if unknown:
        print(f"no part {', '.join(sorted(unknown))}; write one of {', '.join(PARTS)}", file=sys.stderr)
        return 2
    for name in names or PARTS:
        for file, text in PARTS[name]().items():
            path = DOCS / file
            path.parent.mkdir(exist_ok=True)
            if not path.exists() or path.read_text(encoding="utf-8") != text:
                path.write_text(text, encoding="utf-8")
                print(f"docs/{file}")
        if name == "reference":
            known = set(PARTS[name]())
            for path in (DOCS / "reference").glob("*.md"):
                if path.relative_to(DOCS).as_posix() not in known:
                    path.unlink()
                    print(f"docs/reference/{path.name} is gone")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
