"""What asv runs: a package, because a folder without this file would not be imported."""

import sys
from pathlib import Path

# asv puts this package, but not the folder it stands in, where `import roofline` finds it.
sys.path.insert(0, str(Path(__file__).parent.parent))
