"""`python -m weightd` is the command `weightd`."""

from weightd.cli.main import main

if __name__ == "__main__":
    main()
