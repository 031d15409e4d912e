"""`python -m experiments` is the console script `warpsmith`."""

import sys

from experiments.cli import main

sys.exit(main())
