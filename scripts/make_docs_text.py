"""Make src/wholebatch/data/files/docs.txt.xz: ``python scripts/make_docs_text.py``.

It is the text that comes with the library, a snapshot of the pages in docs/, one after the other in the order of their
names. Results that a recipe names hold for the snapshot that was there then, so make it anew together with them.
"""

from __future__ import annotations

import lzma
from pathlib import Path

ROOT = Path(__file__).parents[1]
TARGET = ROOT / "src" / "wholebatch" / "data" / "files" / "docs.txt.xz"
MOST = 300_000  # bytes of the file in the package


def joined(folder: Path) -> bytes:
    """Return the pages of a folder with a blank line between them."""
    return b"\n".join(page.read_bytes().strip() + b"\n" for page in sorted(folder.glob("*.md")))


def main() -> None:
    """Write the file and say how large it is."""
    text = joined(ROOT / "docs")
    packed = lzma.compress(text, preset=9 | lzma.PRESET_EXTREME)
    if len(packed) > MOST:
        raise SystemExit(f"{len(packed)} bytes are more than the {MOST} that a package should carry")
    TARGET.write_bytes(packed)
    print(f"{TARGET.name}: {len(packed)} bytes of {len(text)} bytes of text")


if __name__ == "__main__":
    main()
