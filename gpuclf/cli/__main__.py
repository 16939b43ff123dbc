"""Run the command line by ``python -m gpuclf.cli``."""

from gpuclf.cli import main

main()
