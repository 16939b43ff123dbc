"""How the gallery starts the examples; a module of its own, which Sphinx can pickle."""

import tempfile
from pathlib import Path

SCRATCH = tempfile.mkdtemp(prefix="gpuclf-docs-")
IN_FULL = ("spiral",)  # takes seconds, and is worth it


class LittleData:
    """Options for little data, and for pictures out of the way."""

    def __call__(self, gallery_conf, script_vars):
        """Return the options of one script."""
        name = Path(script_vars["src_file"]).stem
        options = ["--out", f"{SCRATCH}/{name}.png"]
        return options if name in IN_FULL else ["--quick", *options]

    def __repr__(self):
        """Be the same from build to build."""
        return "LittleData()"


with_little_data = LittleData()
