"""What people see of a run, made of records and nothing else.

``choose`` gives the display of a stream: ``Live`` on a terminal, ``Lines`` elsewhere. ``RunFolder``
keeps a run on disk, ``read_history`` reads it back, and ``curves`` draws it; ``sheet.sheet`` draws labelled
pictures.
All but the last are observers or functions of records; rich and matplotlib are imported when something is drawn.
What needs numpy is not loaded with the package: ``liveplot.LivePlot`` draws while a run goes on, ``plotting.plot``
lines of one's own, and ``overlay.overlay`` makes a chart of several runs.
"""

from wholebatch.display.figures import curves
from wholebatch.display.lines import Lines
from wholebatch.display.live import Live
from wholebatch.display.progress import choose
from wholebatch.display.runfolder import RunFolder, read_history
from wholebatch.display.writing import write_bytes, write_text

__all__ = ["Lines", "Live", "RunFolder", "choose", "curves", "read_history", "write_bytes", "write_text"]
