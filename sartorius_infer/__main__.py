"""`python -m sartorius_infer`."""

import sys

from sartorius_infer.cli.main import main

sys.exit(main())
