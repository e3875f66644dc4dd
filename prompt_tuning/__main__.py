"""`python -m prompt_tuning`, so that `accelerate launch -m prompt_tuning train RECIPE` works."""

import sys

from prompt_tuning.cli.main import main

sys.exit(main())
