"""What people see of a run, made of records and nothing else.

``choose`` gives the display of a stream: ``Live`` on a terminal, ``Lines`` elsewhere. ``RunFolder``
keeps a run on disk, ``read_history`` reads it back, ``curves`` draws it, and ``overlay`` makes a chart of several.
``LivePlot`` draws while a run goes on, ``plot`` draws lines of one's own. All are observers or functions of records;
rich and matplotlib are imported when something is drawn.
"""

from wholebatch.display.figures import curves
from wholebatch.display.lines import Lines
from wholebatch.display.live import Live
from wholebatch.display.liveplot import LivePlot
from wholebatch.display.overlay import overlay
from wholebatch.display.plotting import plot
from wholebatch.display.progress import choose
from wholebatch.display.runfolder import RunFolder, read_history
from wholebatch.display.writing import write_bytes, write_text

__all__ = [
    "Lines",
    "Live",
    "LivePlot",
    "RunFolder",
    "choose",
    "curves",
    "overlay",
    "plot",
    "read_history",
    "write_bytes",
    "write_text",
]
