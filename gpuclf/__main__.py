"""``python -m gpuclf``: the command line."""

from gpuclf.cli import main

main()
