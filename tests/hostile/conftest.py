"""The whole corpus takes minutes and meets code that is still open to it: it runs on request.

BNFOLD_HOSTILE=1 pytest tests/hostile
"""

from __future__ import annotations

import os

collect_ignore = [] if os.environ.get("BNFOLD_HOSTILE") else ["test_hostile.py"]
