"""``wholebatch export``: a run's model for other programs."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from wholebatch.cli.words import Run, Work, run_folder
from wholebatch.core.errors import RunFolderError

Output = Annotated[
    Path | None, typer.Option("-o", "--output", metavar="FOLDER", help="Where to write; RUN/export if not said.")
]


def export(run: Run, output: Output = None) -> Work:
    """Write a run's model as safetensors and by torch.export; each is loaded back and compared.

    Needs the extra: pip install 'wholebatch[export]'.
    """
    return partial(_export, run, output)


def _export(run: str, output: Path | None) -> None:
    folder = run_folder("export", run)
    from wholebatch.trained import export
    from wholebatch.trained.opening import opened

    if output is None:
        if not isinstance(folder, Path):
            raise RunFolderError(f"export writes files of this machine; say where with -o FOLDER (the run is {run})")
        output = folder / "export"
    export.check()
    for file in export.export(opened(folder), output):
        print(f"{file.place}  {file.size:,} bytes, loaded back: outputs differ by {file.difference:.1e}", flush=True)
