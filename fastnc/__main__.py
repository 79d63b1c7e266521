"""`python -m fastnc` is `fastnc`."""

from fastnc.cli import main

if __name__ == "__main__":
    main()
