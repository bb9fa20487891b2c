"""`python -m polyserve`: the same as the command `polyserve`."""

from polyserve.cli import main

if __name__ == "__main__":
    main()
