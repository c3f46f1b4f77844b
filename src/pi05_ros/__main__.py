"""`python -m pi05_ros` is the program `pi05`."""

import sys

from pi05_ros.cli import main

sys.exit(main())
