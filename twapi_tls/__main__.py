"""``python -m twapi_tls``."""

import sys

from .cli import main

sys.exit(main())
