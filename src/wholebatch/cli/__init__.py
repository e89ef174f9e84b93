"""The command line: one file per command (``train.py``, ``evaluate.py``, ``config.py``, ``data.py``), the words they
share, the table of commands (``app.py``), and ``main``, which runs one and makes its outcome an exit code."""
