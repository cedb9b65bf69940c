"""Run the prompt on standard input through comfy-toolkit, and print the steps it was told and the files, as JSON.

Run with the base URL of a server.
"""

import json
import sys

from comfy_toolkit import ComfyClient  # type: ignore[import-not-found]

steps = []
client = ComfyClient(sys.argv[1])
assert client.is_online()
result = client.submit_and_track(json.load(sys.stdin), on_progress=lambda done, of: steps.append([done, of]))
print(json.dumps({"steps": steps, "files": result["filenames"]}))
