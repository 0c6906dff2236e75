"""`python -m apr …` is `apr …`."""

import sys

from apr.cli import main

sys.exit(main())
