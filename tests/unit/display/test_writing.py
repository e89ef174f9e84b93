import os

import pytest

from wholebatch.display.writing import write_bytes, write_text


@pytest.mark.parametrize("step", ["write", "replace"])
@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_a_failure_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch, step, error):
    path = tmp_path / "config.yaml"
    write_text(path, "old")

    def fail(*_, **__):
        raise error

    def half(self, data):
        with open(self, "wb") as file:
            file.write(data[: len(data) // 2])
        raise error

    if step == "write":
        monkeypatch.setattr("pathlib.Path.write_bytes", half)
    else:
        monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(type(error)):
        write_bytes(path, b"new and longer")
    assert [(file.name, file.read_text()) for file in tmp_path.iterdir()] == [("config.yaml", "old")]


def test_text_is_utf8_and_readable_by_others(tmp_path):
    mask = os.umask(0o022)
    try:
        write_text(tmp_path / "a.txt", "größe\n")
    finally:
        os.umask(mask)
    assert (tmp_path / "a.txt").read_bytes() == "größe\n".encode()
    assert (tmp_path / "a.txt").stat().st_mode & 0o777 == 0o644
