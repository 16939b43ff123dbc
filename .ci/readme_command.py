"""Print the command that stands in the README behind the marker ``<!-- command: NAME -->``."""

import re
import sys
from pathlib import Path

readme, name = Path(sys.argv[1]), sys.argv[2]
found = re.search(
    rf"<!-- command: {re.escape(name)} -->\s*```(?:bash|sh)\n(.*?)\n```", readme.read_text(), re.S
)
if found is None:
    sys.exit(f"{readme} has no command marked {name!r}")
print(found.group(1).strip())
