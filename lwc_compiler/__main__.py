"""`python -m lwc_compiler` is `lwc`."""

import sys

from lwc_compiler.cli import main

sys.exit(main())
