"""Run the command line, also as `accelerate launch -m prompt_tuning train RECIPE`."""

import sys

from prompt_tuning.cli.main import main

sys.exit(main())
