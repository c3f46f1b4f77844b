"""Print the figures of the network on this machine: the same as `pi05 bench model`."""

import sys

from pi05_ros.bench.model import main

if __name__ == "__main__":
    sys.exit(main())
