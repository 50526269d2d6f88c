"""Door for programs that speak OpenAI's HTTP."""
