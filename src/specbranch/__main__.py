"""``python -m specbranch``."""

import sys

from specbranch.cli import main

sys.exit(main())
