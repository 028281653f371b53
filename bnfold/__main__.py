"""`python -m bnfold` is the `bnfold` command."""

from bnfold.cli import main

main()
