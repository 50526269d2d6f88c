"""The process that holds one model: schedule, run, postprocess."""
