import pytest

from wholebatch.core import imports
from wholebatch.core.errors import ConfigError


def broken(monkeypatch, error, name="torchvision"):
    def refuse(wanted):
        raise error

    monkeypatch.setattr(imports, "import_module", refuse)
    monkeypatch.setattr(imports, "_version", {"torchvision": "0.99.0", "torch": "2.13.0+cpu"}.__getitem__)


def test_what_is_there():
    assert imports.module("math").floor(1.5) == 1
    assert imports.thing("collections:OrderedDict.fromkeys")("ab") == {"a": None, "b": None}


@pytest.mark.parametrize("path", ["math", "math:", ":floor", "math.:floor", "math:floor:x", "a b:c", "../x:y", ""])
def test_what_is_no_path(path):
    with pytest.raises(ConfigError, match=r"write package\.module:name"):
        imports.thing(path)


def test_what_is_missing():
    with pytest.raises(ConfigError, match=r"^nothing_like_it is not installed: install the package that has it$"):
        imports.module("nothing_like_it")
    with pytest.raises(ConfigError, match=r"there is no module nothing_like_it.a, since there is no nothing_like_it"):
        imports.module("nothing_like_it.a")
    with pytest.raises(ConfigError, match="math has no 'flor'; did you mean 'floor'"):
        imports.thing("math:flor")


@pytest.mark.parametrize("name", ["timm", "torchvision.models"])
def test_what_an_extra_installs(monkeypatch, name):
    top = name.partition(".")[0]
    broken(monkeypatch, ModuleNotFoundError("no", name=top))
    with pytest.raises(ConfigError, match=rf"^{top} is not installed: pip install 'wholebatch\[{top}\]'$"):
        imports.module(name)


def test_what_lacks_something_else(monkeypatch):
    broken(monkeypatch, ModuleNotFoundError("no", name="torchvision"))
    with pytest.raises(
        ConfigError,
        match=r"importing timm fails, since torchvision is missing: pip install 'wholebatch\[torchvision\]'",
    ):
        imports.module("timm")


def test_torchvision_of_another_build(monkeypatch):
    broken(monkeypatch, RuntimeError("operator torchvision::nms does not exist"))
    with pytest.raises(ConfigError) as caught:
        imports.module("timm")
    said = str(caught.value)
    assert "torchvision 0.99.0" in said
    assert "2.13.0+cpu" in said
    assert "install both from one place" in said
    assert "\n" not in said


def test_another_failure_in_one_line(monkeypatch):
    broken(monkeypatch, OSError("libx.so:\ncannot open"))
    with pytest.raises(ConfigError, match=r"^importing x fails: OSError: libx.so: cannot open$"):
        imports.module("x")


def test_a_module_that_fails_inside(monkeypatch, tmp_path):
    (tmp_path / "bad_inside.py").write_text("1 / 0\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ConfigError, match="importing bad_inside fails: ZeroDivisionError: division by zero"):
        imports.thing("bad_inside:f")


def test_calls():
    assert imports.call("dict", dict, {"a": 1}) == {"a": 1}

    def make(width, *, depth=1):
        if width < 0:
            raise ValueError("negative")
        return width * depth

    assert imports.parameters(make) == ["width", "depth"]
    assert imports.parameters(lambda **anything: 0) is None
    assert imports.call("make", make, {"width": 2, "depth": 3}) == 6
    with pytest.raises(ConfigError, match="make does not take widht; did you mean 'width'"):
        imports.call("make", make, {"widht": 2})
    with pytest.raises(ConfigError, match=r"make cannot be made with \{'width': -1\}: ValueError: negative"):
        imports.call("make", make, {"width": -1})


def test_versions():
    assert imports._version("torch") != "(of unknown version)"
    assert imports._version("nothing-like-it") == "(of unknown version)"
