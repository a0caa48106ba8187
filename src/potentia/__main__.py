"""``python -m potentia``."""

from potentia._cli import main

if __name__ == "__main__":
    main()
