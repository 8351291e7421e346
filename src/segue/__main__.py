"""``python -m segue``."""

from segue.cli import main

raise SystemExit(main())
