"""``python -m wholebatch`` is the command ``wholebatch``."""

from wholebatch.cli.main import main

if __name__ == "__main__":
    main()
