"""The daemon: a gateway process that answers on one ZeroMQ socket, and one worker process per loaded model."""
