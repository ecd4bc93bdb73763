"""``python -m gcsa_ext`` is ``gcsa-ext info``; with arguments it is ``gcsa-ext``."""

import sys

from gcsa_ext.cli import main

sys.exit(main(sys.argv[1:] or ["info"]))
