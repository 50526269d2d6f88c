"""Command `python -m client.doors.lm_eval`: lm-eval's own command line, which knows the model `gpt2d` then."""

from __future__ import annotations

import sys

try:
    import os

    from protocol.programs import needed_by

    # Read once, when the hub's libraries are loaded: they count nothing, and tell nobody of this machine.
    os.environ |= {"HF_HUB_DISABLE_TELEMETRY": "1", "HF_UPDATE_DOWNLOAD_COUNTS": "0", "DO_NOT_TRACK": "1"}
    with needed_by("python -m client.doors.lm_eval", "lm-eval"):
        from lm_eval.__main__ import cli_evaluate
        from lm_eval.api.registry import model_registry
except KeyboardInterrupt:  # these take a moment, in which no traceback helps
    sys.exit(130)

from protocol.errors import Gpt2dError

NAME = "gpt2d"
DESCRIPTION = """\
lm-eval (lm-evaluation-harness) with the model `gpt2d`: a model of a gpt2d-server, asked over its protocol. Everything
else is lm-eval's own command line, which this hands its arguments to.

  python -m client.doors.lm_eval run --model gpt2d --model_args model=gpt2 --tasks hellaswag
  python -m client.doors.lm_eval run --model gpt2d --model_args model=gpt2,precision=fp32 --tasks mine --include_path .
  echo "$LINE" | python -m client.doors.lm_eval run --model gpt2d --model_args endpoint=-,model=gpt2 --tasks piqa

--model_args, separated by commas:
  endpoint     the daemon's address (default: that of this machine); - reads a connect line from stdin. One with its
               secret is refused here, since lm-eval writes its arguments into its results
  model, engine, precision
               which model; it is loaded where it is not. Left out: the daemon's default
  max_length   tokens of a text at most (default: the model's context)
  prefix_token_id
               what stands before a text without a context (default: the model's bos, else its end of text)
  timeout      seconds that one request may take (default: 600)

Texts are cut as lm-eval's `hf` cuts them, so that both give the same values. --batch_size and --device mean nothing
here: the daemon packs what it is asked. docs/scoring.md says more.
"""


def main() -> None:
    if sys.argv[1:2] in (["-h"], ["--help"]):
        print(DESCRIPTION)
        print("The rest is lm-eval's:\n")
    model_registry.register(NAME, target="client.doors.lm_eval.model:DaemonLM")
    try:
        cli_evaluate()
    except Gpt2dError as e:
        sys.exit(f"lm-eval --model {NAME}: {e}")
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
