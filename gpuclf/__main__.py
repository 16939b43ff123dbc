"""``python -m gpuclf``, and the command ``gpuclf``: signals are heard before anything is loaded."""

from signal import SIG_DFL

from gpuclf import interrupts

__all__ = ["main"]


def main() -> None:
    """Run the command line."""
    with interrupts.heard(then=SIG_DFL):
        from gpuclf.cli import main as run

        run()


if __name__ == "__main__":
    main()
