from __future__ import annotations

import sys
from pathlib import Path

# The models are everybody's: they lie one folder up.
sys.path.insert(0, str(Path(__file__).parents[1]))
