"""Runs the program as ``python -m millrace_training``."""

import sys

from millrace_training.cli import main

sys.exit(main())
