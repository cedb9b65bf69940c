"""Ray actors and Serve deployments, and the processes of `serve-app up`. With `cli` the only code that imports Ray."""
