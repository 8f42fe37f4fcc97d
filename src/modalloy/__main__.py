"""python -m modalloy"""

import sys

from modalloy.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
