"""`python -m sartorius_infer`."""

import sys

from sartorius_infer.cli import main

sys.exit(main())
