"""`python -m serve_app.cli`: the command line, if the `serve-app` script is not on the path."""

from serve_app.cli import main

raise SystemExit(main())
