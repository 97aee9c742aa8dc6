"""``python -m lesde.cli`` is the command ``lesde``."""

from lesde.cli import main

if __name__ == "__main__":
    main()
