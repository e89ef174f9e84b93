"""The command line: what is answered, with which exit code, and what is left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import types
import warnings

import pytest

import wholebatch
from wholebatch import config
from wholebatch.cli import main as cli
from wholebatch.core.errors import DataError, InputTypeError, NonFiniteError, PromiseWarning

ENVIRONMENT = {**os.environ, "PYTHONWARNINGS": "default"}
ENVIRONMENT.pop("PYTHONUNBUFFERED", None)  # without a buffer nothing is left to be written at the exit


@pytest.fixture
def in_tmp(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def call(in_tmp, capsys):
    """Run the command line in this process, in an empty folder; gives (exit code, stdout, stderr)."""

    def run(*words: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as stop:
            cli.main(words)
        printed = capsys.readouterr()
        return int(stop.value.code or 0), printed.out, printed.err

    return run


@pytest.fixture
def runs(monkeypatch):
    """A stand-in for the module that trains, which notes what it is called with."""
    stand_in = types.ModuleType("wholebatch.runs")
    stand_in.calls = []
    stand_in.train_recipe = lambda config, **rest: stand_in.calls.append(config)
    monkeypatch.setitem(sys.modules, "wholebatch.runs", stand_in)
    monkeypatch.setattr(wholebatch, "runs", stand_in, raising=False)
    return stand_in


def command(*words: str, **rest) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "wholebatch", *words],
        capture_output=True,
        text=True,
        env=ENVIRONMENT,
        timeout=60,
        **rest,
    )


def run_python(code: str, *words: str, **rest) -> subprocess.Popen[str]:
    """Start the command line with ``code`` as the training."""
    script = (
        "import sys, types, time\n"
        "runs = types.ModuleType('wholebatch.runs')\n"
        f"def train_recipe(config):\n    {code}\n"
        "runs.train_recipe = train_recipe\n"
        "sys.modules['wholebatch.runs'] = runs\n"
        "import wholebatch\nwholebatch.runs = runs\n"
        "from wholebatch.cli.main import main\nmain()\n"
    )
    return subprocess.Popen(
        [sys.executable, "-c", script, *words],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT, **rest,
    )  # fmt: skip


# what is asked for ------------------------------------------------------------------------------------


def test_train_alone_trains_digits(call, runs):
    assert call("train") == (0, "", "")
    assert runs.calls == [config.load("digits")]


def test_recipe_settings_and_files_come_together(call, runs, in_tmp):
    (in_tmp / "my.yaml").write_text("seed: 3\nlr: 9\n")
    (in_tmp / "two.yaml").write_text("lr: 8\n")
    assert call("train", "digits", "batch_size=64", "-c", "my.yaml", "epochs=2", "--config", "two.yaml")[0] == 0
    (made,) = runs.calls
    assert (made.batch_size, made.epochs, made.seed, made.lr) == (64, 2, 3, 8)


def test_the_recipe_may_be_left_out_before_settings(call, runs):
    assert call("train", "seed=4")[0] == 0
    assert runs.calls[0].seed == 4


def test_config_show_prints_what_can_be_given_back(call, in_tmp):
    code, shown, errors = call("config", "show", "digits", "lr=0.25", "optimizer.eps=1e-7")
    assert (code, errors) == (0, "")
    assert "# samples of one optimizer step" in shown
    (in_tmp / "back.yaml").write_text(shown)
    assert call("config", "show", "-c", "back.yaml")[1] == shown


def test_config_show_finds_an_argument_that_nobody_takes(call):
    code, shown, errors = call("config", "show", "optimizer=sgd", "optimizer.momentun=0.9")
    assert (code, shown) == (2, "")
    assert "did you mean 'momentum'?" in errors


def test_config_validate_says_what_would_be_trained(call):
    code, told, errors = call("config", "validate", "digits", "batch_size=100", "epochs=20")
    assert (code, errors) == (0, "")
    assert told.startswith("valid: small_cnn with ")
    assert told.endswith(" parameters on 1,437 samples of digits, 20 epochs of 15 steps\n")


def test_config_validate_builds(call):
    code, _, errors = call("config", "validate", "optimizer=adamw", "optimizer.weight_decay=-1")
    assert code == 2
    assert "Invalid weight_decay" in errors


def test_version(call):
    assert call("--version") == (0, f"wholebatch {wholebatch.__version__}\n", "")


@pytest.mark.parametrize(
    "words", [["--help"], ["-h"], ["train", "--help"], ["evaluate", "-h"], ["config", "show", "-h"]]
)
def test_help(call, words):
    code, told, errors = call(*words)
    assert (code, errors) == (0, "")
    assert told.startswith("Usage: wholebatch")


@pytest.mark.parametrize("words", [[], ["config"]])
def test_nothing_asked_shows_the_help_and_is_a_mistake(call, words):
    code, told, _ = call(*words)
    assert code == 2
    assert told.startswith("Usage: wholebatch")


# mistakes ---------------------------------------------------------------------------------------------

MISTAKES = [
    (["train", "--lr", "3"], "wholebatch: there is no option --lr; write lr=3\n"),
    (["train", "digits", "--lr=3"], "write lr=3\n"),
    (["train", "--lr", "-3"], "write lr=-3\n"),
    (["train", "-lr", "3"], "write lr=3\n"),
    (["train", "--batch-size", "3", "lr=3"], "there is no option --batch-size; write batch_size=3\n"),
    (["train", "--momentum", "lr=3"], "write optimizer.momentum=value\n"),
    (["train", "--optimizer.momentum", "0.9"], "write optimizer.momentum=0.9\n"),
    (["train", "--batch_sise", "3"], "write batch_size=3\n"),
    (["train", "--zzz"], "settings are written key=value\n"),
    (["config", "show", "--lr", "3"], "write lr=3\n"),
    (["evaluate", "run", "--lr", "3"], "write lr=3\n"),
    (["train", "lr", "3"], "'lr' is a setting, not a recipe; write lr=3\n"),
    (["train", "batch-size"], "write batch_size=value\n"),
    (["train", "digit"], "there is no recipe 'digit'; did you mean 'digits'?\n"),
    (["train", "imagenat"], "there is no recipe 'imagenat'; did you mean 'imagenet'?\n"),
    (["train", "zzz"], "there is no recipe 'zzz'; recipes: cifar10, cifar100, contrastive, digits, fashion_mnist, "),
    (["train", "my.yaml"], "write -c my.yaml\n"),
    (["train", "digits", "lr"], "'lr' has no value; write lr=value\n"),
    (["train", "digits", "digits"], "settings are written key=value\n"),
    (["train", ""], "there is no recipe ''"),
    (["train", "digits", ""], "settings are written key=value\n"),
    (["train", "batchsize=3"], "did you mean 'batch_size'?\n"),
    (["train", "lr=abc"], "lr=abc: expected a number above 0\n"),
    (["train", "lr="], "write lr=value"),
    (["train", "batch_size=0"], "batch_size=0: expected a whole number from 1"),
    (["train", "batch_size=-3"], "batch_size=-3: expected a whole number from 1"),
    (["train", "model=lenet", "model.name=mlp"], "model.name is given twice, as lenet and mlp"),
    (["train", "recipe=a", "digits"], "settings are written key=value\n"),
    (["train", "data.root=a\0b"], "no setting can hold"),
    (["train", "a\0b"], "there is no recipe"),
    (["train", "-c", "none.yaml"], "there is no file 'none.yaml'"),
    (["train", "-c", "a\0b"], "null byte"),
    (["train", "-c"], "requires an argument"),
    (["config", "validate", "data.root=/nonexistent"], "data.root=/nonexistent"),
    (["config", "validate", "model=lenett"], "did you mean 'lenet'?\n"),
    (["config", "shw"], "No such command 'shw'"),
    (["evaluate"], "Missing argument 'RUN'"),
    (["evaluate", "lr=3"], "takes the folder of a run first"),
    (["trian"], "No such command 'trian'"),
    (["--foo"], "No such option: --foo"),
]  # fmt: skip


@pytest.mark.parametrize(("words", "answer"), MISTAKES, ids=[" ".join(map(repr, item[0])) for item in MISTAKES])
def test_a_mistake_is_told_in_one_line_with_exit_code_2_and_leaves_nothing(call, runs, in_tmp, words, answer):
    code, told, errors = call(*words)
    assert (code, told) == (2, "")
    assert errors.startswith("wholebatch: ")
    assert errors.count("\n") == 1
    assert answer in errors
    assert runs.calls == []
    assert list(in_tmp.iterdir()) == []


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (DataError("no\nsuch data"), 2, "wholebatch: no such data\n"),
        (InputTypeError("not a model"), 2, "wholebatch: not a model\n"),
        (NonFiniteError("NaN in step 3"), 1, "wholebatch: NaN in step 3\n"),
        (KeyboardInterrupt(), 130, "wholebatch: interrupted\n"),
    ],
)
def test_what_ends_a_training_is_told_in_one_line(call, runs, error, code, line):
    def fail(config):
        raise error

    runs.train_recipe = fail
    assert call("train") == (code, "", line)


@pytest.mark.parametrize(
    "error", [ValueError("a bug"), EOFError("a bug"), OSError(28, "a bug"), BrokenPipeError("a bug")]
)
def test_a_bug_shows_its_traceback_and_exits_1(call, runs, error):
    def fail(config):
        raise error

    runs.train_recipe = fail
    code, _, errors = call("train")
    assert code == 1
    assert errors.startswith("Traceback")
    assert "a bug" in errors


def test_an_exit_of_somebody_else_is_left_alone(call, runs):
    def leave(config):
        raise SystemExit(7)

    runs.train_recipe = leave
    assert call("train")[0] == 7


def test_a_promise_that_does_not_hold_is_told_in_one_line_and_other_warnings_as_usual(call, runs, monkeypatch):
    usual = []
    monkeypatch.setattr(warnings, "showwarning", lambda message, *place, **rest: usual.append(str(message)))

    def warn(config):
        warnings.simplefilter("default")
        warnings.warn("batch norm\nhere", PromiseWarning, stacklevel=1)
        warnings.warn("old", DeprecationWarning, stacklevel=1)
        warnings.warn("torch's", UserWarning, stacklevel=1)
        warnings.warn_explicit("the schedule\nends", UserWarning, cli.__file__, 1)

    runs.train_recipe = warn
    code, _, errors = call("train")
    assert code == 0
    assert errors.startswith("wholebatch: batch norm here\n")
    assert errors.endswith("wholebatch: the schedule ends\n")
    assert errors.count("\n") == 2
    assert usual == ["old", "torch's"]


def test_signals_and_warnings_are_given_back(call, runs):
    before = signal.getsignal(signal.SIGTERM), warnings.showwarning
    inside = []
    runs.train_recipe = lambda config: inside.append(signal.getsignal(signal.SIGTERM))
    call("train")
    assert (signal.getsignal(signal.SIGTERM), warnings.showwarning) == before
    assert inside != [before[0]]


# a process of its own ---------------------------------------------------------------------------------


def test_help_loads_none_of_the_heavy_packages_and_is_quick():
    code = (
        "import sys, wholebatch.cli.main\n"
        "try:\n    wholebatch.cli.main.main(['--help'])\nexcept SystemExit:\n    pass\n"
        "heavy = ('torch', 'matplotlib', 'omegaconf', 'numpy')\n"
        "print([name for name in heavy if name in sys.modules], file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr == "[]\n"
    times = []
    for _ in range(3):  # the processor's time: a busy machine does not count
        before = os.times()
        assert command("--help").returncode == 0
        after = os.times()
        times.append(after.children_user + after.children_system - before.children_user - before.children_system)
    assert min(times) < 0.5


@pytest.mark.parametrize(
    ("number", "code", "line"), [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "terminated")]
)
def test_signals_end_the_training_cleanly(number, code, line, tmp_path):
    training = "\n    ".join(
        [
            "try:",
            "    print('training', flush=True)",
            "    time.sleep(60)",
            "finally:",
            "    print('closed', flush=True)",
        ]
    )
    process = run_python(training, "train", cwd=tmp_path)
    assert process.stdout.readline() == "training\n"
    process.send_signal(number)
    told, errors = process.communicate(timeout=30)
    assert process.returncode == code
    assert told == "closed\n"
    assert errors == f"wholebatch: {line}\n"


def test_a_reader_who_goes_away_is_no_error(tmp_path):
    process = run_python("[print('x' * 1000) for _ in range(10_000)]", "train", cwd=tmp_path)
    process.stdout.read(10)
    process.stdout.close()
    errors = process.stderr.read()
    process.stderr.close()
    assert process.wait(30) == 1
    assert errors == ""


@pytest.mark.parametrize("option", ["--help", "--version"])
def test_a_reader_who_goes_away_before_the_first_word_is_no_error(option):
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [sys.executable, "-m", "wholebatch", option],
        stdout=writer,
        stderr=subprocess.PIPE,
        text=True,
        env=ENVIRONMENT,
    )
    os.close(writer)
    assert done.stderr == ""
    assert done.returncode == 1


def test_python_m_wholebatch_answers_mistakes_and_leaves_nothing(tmp_path):
    done = command("train", "--lr", "3", cwd=tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (2, "", "wholebatch: there is no option --lr; write lr=3\n")
    (tmp_path / "binary.yaml").write_bytes(b"\x89PNG\xff")
    done = command("config", "show", "-c", "binary.yaml", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "wholebatch: 'binary.yaml' is not text in UTF-8; -c takes a YAML file\n"
    assert [path.name for path in tmp_path.iterdir()] == ["binary.yaml"]


@pytest.mark.parametrize(
    ("processes", "setting", "said"),
    [
        ("4", "parallel.pipeline=3", "pipeline=3 make 3, but the number of processes is 4"),
        ("3", "parallel.tensor=2", "3 processes would fit tensor=3 or data=3"),
        ("4", "parallel.shard=8", "wholebatch train --processes 8"),
        ("2", "parallel.schedule=gpipe", "says nothing without pipeline="),
    ],
)
def test_what_processes_cannot_do_is_said_once_before_they_start(call, processes: str, setting: str, said: str) -> None:
    code, _, errors = call("train", "digits", "--processes", processes, setting)
    assert code == 2
    assert errors.count("\n") == 1
    assert said in errors
    assert "process 0" not in errors


def test_of_those_that_found_one_mistake_the_first_says_it(call, monkeypatch) -> None:
    waited = []
    monkeypatch.setattr(cli, "time", types.SimpleNamespace(sleep=waited.append))
    for rank in ("0", "1"):
        monkeypatch.setenv("RANK", rank)
        assert call("train", "nothing")[0] == 2
    assert waited == [2.0]
