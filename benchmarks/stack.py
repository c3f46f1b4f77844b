"""Print the figures of the whole stack on this machine: the same as `pi05 bench stack`."""

import sys

from pi05_ros.bench.stack import main

if __name__ == "__main__":
    sys.exit(main())
