"""The command line of the scripts that break into processes at random moments."""

import argparse


def asked_for(doc, of_what, number, each, kinds):
    """Return how many there shall be, the seed, and the kinds: all, or those that are named."""
    parser = argparse.ArgumentParser(description=doc.partition("\n")[0])
    parser.add_argument(f"--{of_what}", type=int, default=number, dest="number")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(f"--{each}", choices=kinds, action="append", dest="kinds")
    options = parser.parse_args()
    return options.number, options.seed, options.kinds or list(kinds)
