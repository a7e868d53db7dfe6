"""The trainer: from rows to a published adapter."""

import os

# huggingface_hub reads these once, at its import, which is always after that of this package. Only our own client sends
# requests to a hub, also for a push (storage/hub/push.py); the library's session has no limits, and asks the hub for
# things that the user did not ask for.
os.environ |= {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
