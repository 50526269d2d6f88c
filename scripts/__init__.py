"""Programs beside the product: run from the checkout as `python -m scripts.NAME`."""

import server  # noqa: F401 - turns off the telemetry of the libraries before a script loads one
