"""Every exception and warning of this library.

::

    WholebatchError
    ├── InputError (ValueError)       a value, shape, file or setting that cannot be used
    │   ├── BatchError                a batch that cannot be cut into micro-batches
    │   ├── LossError                 what a loss was given or what it returned
    │   ├── ConfigError               a configuration: unknown key, impossible value
    │   ├── DataError                 a data set or one of its files
    │   ├── RunFolderError            a run folder that cannot be read or written
    │   ├── OutOfMemoryError          not even one sample fits, or a window that cannot be made again
    │   ├── PeerError                 another process failed; the message says which one, and why
    │   │   └── LostError             another process is gone, or does not answer; it said nothing
    │   └── CheckpointError           a checkpoint that is damaged, missing, or of another run
    ├── InputTypeError (TypeError)    an object of a kind that cannot be used
    ├── WrongStepError (AssertionError)    a training loop that does not compute the exact update
    ├── NonFiniteError (ArithmeticError)   a gradient with NaN or infinity in it
    ├── WorldError (RuntimeError)     a process that was started to check a promise failed
    └── FencedError                   a newer world has taken the run folder over; this one may write nothing

    PromiseWarning (UserWarning)      the result depends on something it should not depend on
    OutOfMemoryWarning (UserWarning)  memory ran out, and the step was made again in smaller micro-batches

A message shows what was given, what was expected, and the repair. The command line prints an
``InputError`` or an ``InputTypeError`` in one line and exits with 2.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class WholebatchError(Exception):
    """Base of all errors raised on purpose by this library."""


class InputError(WholebatchError, ValueError):
    """A value, shape, file or setting that cannot be used."""


class BatchError(InputError):
    """A batch that cannot be cut into micro-batches."""


class LossError(InputError):
    """What a loss was given, or what it returned, cannot be summed exactly."""


class ConfigError(InputError):
    """A configuration with an unknown key or an impossible value."""


class DataError(InputError):
    """A data set, or one of its files, that cannot be used."""


class RunFolderError(InputError):
    """A run folder that cannot be read or written."""


class CheckpointError(InputError):
    """A checkpoint that is damaged, missing, or that belongs to another run."""


class OutOfMemoryError(InputError):
    """Memory ran out with a single sample, or in a window that cannot be made again; the weights are as before."""


class PeerError(InputError):
    """Another process failed; the message says which one, and why."""


class LostError(PeerError):
    """Another process is gone, or does not answer, and could not say why."""


class InputTypeError(WholebatchError, TypeError):
    """An object of a kind that cannot be used."""


class WrongStepError(WholebatchError, AssertionError):
    """A training loop does not compute the exact update of the whole batch; the message is the table of its cases."""


class NonFiniteError(WholebatchError, ArithmeticError):
    """A gradient holds NaN or infinity; the weights are as they were before the step."""


class WorldError(WholebatchError, RuntimeError):
    """A process of a world failed; the message ends with its traceback."""


class FencedError(WholebatchError):
    """A newer world has taken the run folder over, and this one can write nothing there any more."""


class PromiseWarning(UserWarning):
    """The result depends on something that it should not depend on; the message names the ways out."""


class OutOfMemoryWarning(UserWarning):
    """Memory ran out; the step was made again in smaller micro-batches, which the later ones keep."""


def nearest(name: str, known: Iterable[str]) -> str:
    """A hint such as ``; did you mean 'lr'?``, or ``""`` where nothing is near.

    >>> nearest("batchsize", ["batch_size", "lr"])
    "; did you mean 'batch_size'?"
    >>> nearest("zzz", ["batch_size", "lr"])
    ''
    """
    found = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f"; did you mean {found[0]!r}?" if found else ""
