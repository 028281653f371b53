"""`python cli.py` is the `bnfold` command."""

from bnfold.cli import main

main()
