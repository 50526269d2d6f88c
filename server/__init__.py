"""The daemon: a gateway process that answers on one ZeroMQ socket, and one worker process per loaded model."""

from server import telemetry

telemetry.turn_off()
