"""Tiny CIFAR data sets in every layout that they come in."""

from __future__ import annotations

import io
import json
import pickle
import tarfile
from pathlib import Path

import numpy as np
from PIL import Image

_TEN = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
NAMES = {10: list(_TEN), 100: [f"c{n}" for n in range(100)]}


def content(classes: int, split: str, rows: int = 4) -> tuple[np.ndarray, np.ndarray]:
    """(images uint8 (parts · rows, 3, 32, 32), labels) of a split."""
    parts = 5 if (classes, split) == (10, "train") else 1
    draw = np.random.default_rng([classes, split == "test"])
    images = draw.integers(0, 256, (parts * rows, 3, 32, 32), dtype=np.uint8)
    return images, draw.integers(0, classes, parts * rows)


def python_files(classes: int, protocol: int = 2, rows: int = 4) -> dict[str, bytes]:
    files = {}
    for split in ("train", "test"):
        images, labels = content(classes, split, rows)
        names = {10: {"train": [f"data_batch_{n}" for n in range(1, 6)], "test": ["test_batch"]}}.get(
            classes, {"train": ["train"], "test": ["test"]}
        )[split]
        for number, name in enumerate(names):
            part = slice(number * rows, (number + 1) * rows)
            value = {
                b"batch_label": b"a part",
                b"labels" if classes == 10 else b"fine_labels": labels[part].tolist(),
                b"data": images[part].reshape(rows, -1),
                b"filenames": [b"a.png"] * rows,
            }
            if classes == 100:
                value[b"coarse_labels"] = [0] * rows
            files[name] = pickle.dumps(value, protocol)
    key = b"label_names" if classes == 10 else b"fine_label_names"
    files["batches.meta" if classes == 10 else "meta"] = pickle.dumps(
        {key: [name.encode() for name in NAMES[classes]], b"num_vis": 3072}, protocol
    )
    return files


def binary_files(classes: int, rows: int = 4) -> dict[str, bytes]:
    files = {}
    for split in ("train", "test"):
        images, labels = content(classes, split, rows)
        names = {10: {"train": [f"data_batch_{n}.bin" for n in range(1, 6)], "test": ["test_batch.bin"]}}.get(
            classes, {"train": ["train.bin"], "test": ["test.bin"]}
        )[split]
        records = [
            (b"" if classes == 10 else b"\x07") + bytes([label]) + image.tobytes()
            for image, label in zip(images, labels, strict=True)
        ]
        for number, name in enumerate(names):
            files[name] = b"".join(records[number * rows : (number + 1) * rows])
    files["batches.meta.txt" if classes == 10 else "fine_label_names.txt"] = "\n".join([*NAMES[classes], ""]).encode()
    return files


def tar(path: Path, files: dict[str, bytes], mode: str = "w:gz") -> Path:
    with tarfile.open(path, mode) as archive:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return path


def parquet(path: Path, classes: int, split: str, names: bool = True, kind: str = "PNG") -> Path:
    """The Hub's layout: a struct of bytes and path, labels, and a note on the names of the classes."""
    import pyarrow
    import pyarrow.parquet

    images, labels = content(classes, split)
    encoded = []
    for image in images:
        buffer = io.BytesIO()
        Image.fromarray(image.transpose(1, 2, 0)).save(buffer, kind)
        encoded.append({"bytes": buffer.getvalue(), "path": None})
    label = "label" if classes == 10 else "fine_label"
    table = pyarrow.table({"img": encoded, label: labels})
    if classes == 100:
        table = table.append_column("coarse_label", pyarrow.array([0] * len(labels)))
    note = {"info": {"features": {label: {"names": NAMES[classes], "_type": "ClassLabel"}}}}
    if names:
        table = table.replace_schema_metadata({"huggingface": json.dumps(note)})
    path.parent.mkdir(parents=True, exist_ok=True)
    pyarrow.parquet.write_table(table, path)
    return path
