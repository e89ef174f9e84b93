"""``python -m wholebatch`` is the command ``wholebatch``."""

from wholebatch.cli import main

if __name__ == "__main__":
    main()
