"""`python -m vtok`."""

from vtok.cli.app import main

main()
