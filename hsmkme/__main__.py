"""``python -m hsmkme``."""

from hsmkme.cli import main

main()
