"""`python -m pgpool_proxy`."""

import sys

from pgpool_proxy.cli import main

sys.exit(main())
