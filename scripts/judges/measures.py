"""What minicons and surprisal make of texts. Runs in an environment that has them; knows nothing of this project.

python measures.py FOLDER < texts > values: a JSON list of texts, and a JSON list of an object for each.
"""

from __future__ import annotations

import json
import sys
import warnings
from typing import Any

import torch
from minicons.scorer import IncrementalLMScorer
from surprisal import CausalHuggingFaceModel

BLANKS = " \t\n\v\f\r"


def distributions(scorer: Any, text: str) -> tuple[list[int], Any]:
    """Return a text's tokens, and the log-probabilities of all tokens at the place of each and after the last."""
    ids = scorer.tokenizer(text).input_ids
    with torch.no_grad():
        logits = scorer.model(torch.tensor([[scorer.tokenizer.bos_token_id, *ids]])).logits[0]
    return ids, torch.log_softmax(logits.double(), -1)


def corrected(scorer: Any, text: str) -> list[float]:
    """Return the log-probability of each word by the formula, with whitespace and the end of text as boundaries."""
    ids, logs = distributions(scorer, text)
    pieces = [scorer.tokenizer.decode([token]) for token in range(logs.shape[1])]
    end = scorer.tokenizer.eos_token_id
    begins = torch.tensor([piece[:1] in {*BLANKS} or token == end for token, piece in enumerate(pieces)])
    mass = torch.logsumexp(logs.masked_fill(~begins, -torch.inf), -1)
    own = logs[torch.arange(len(ids)), torch.tensor(ids)]
    starts = [i for i, token in enumerate(ids) if i == 0 or begins[token]]
    starts = [i for i in starts if i == 0 or pieces[ids[i - 1]].strip(BLANKS) or i - 1 not in starts]
    values = []
    for first, last in zip(starts, [*starts[1:], len(ids)], strict=True):
        given = mass[first] if begins[ids[first]] else torch.log1p(-mass[first].exp())
        values.append(float(own[first:last].sum() + mass[last] - given))
    return values


def main() -> None:
    warnings.simplefilter("ignore")
    scorer = IncrementalLMScorer(sys.argv[1], "cpu", dtype="float32")
    other = CausalHuggingFaceModel(sys.argv[1])
    values: list[dict[str, Any]] = []
    for text in json.load(sys.stdin):
        _, logs = distributions(scorer, text)
        (measured,) = other.surprise([text])
        values.append(
            {
                "tokens": [logprob for _, logprob in scorer.token_score([text], bos_token=True)[0]][1:],
                "words": scorer.word_score_tokenized([text], str.split, bos_token=True)[0],
                "own correction": scorer.word_score_tokenized([text], str.split, bow_correction=True, bos_token=True)[
                    0
                ],
                "corrected": corrected(scorer, text),
                "surprisal": [-float(value) for value in measured.surprisals],
                "ends": logs[:-1, scorer.tokenizer.eos_token_id].tolist(),
            }
        )
    json.dump(values, sys.stdout)


if __name__ == "__main__":
    main()
