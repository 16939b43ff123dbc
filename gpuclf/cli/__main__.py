"""Run the command line by ``python -m gpuclf.cli``."""

from gpuclf.__main__ import main

main()
