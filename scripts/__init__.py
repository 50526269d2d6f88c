"""Programs beside the product: run from the checkout as `python -m scripts.NAME`."""
