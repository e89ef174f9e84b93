"""Train the digits and keep the curves as docs/images/digits.png, the picture of the README."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from wholebatch import config, runs

PICTURE = Path(__file__).parents[1] / "docs" / "images" / "digits.png"


def main() -> None:
    """Run the recipe in a temporary folder and copy its picture."""
    with tempfile.TemporaryDirectory() as folder:
        runs.train_recipe(config.load("digits", overrides=[f"run_dir={folder}/run"]))
        PICTURE.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(Path(folder) / "run" / "curves.png", PICTURE)


if __name__ == "__main__":
    main()
