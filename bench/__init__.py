"""Measuring: speed beside quality, as records that can be checked."""

import sys
from pathlib import Path

# Packages that a bare GPU machine may lack, brought along by `make gpu-stamp`; last, so that its own come first.
SITE = Path(__file__).resolve().parent.parent / ".gpu-site"
if SITE.is_dir() and str(SITE) not in sys.path:
    sys.path.append(str(SITE))
