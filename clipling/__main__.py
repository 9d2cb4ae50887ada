"""`python -m clipling`."""

from __future__ import annotations

import sys

from clipling.cli import main

sys.exit(main())
