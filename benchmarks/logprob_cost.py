"""What a completion token's log-probability costs the host beside a server: microseconds of a core, piece by piece.

    python benchmarks/logprob_cost.py

GRPO's importance sampling correction has vLLM return the log-probability of each sampled token. A server's engine sends
it to the front end, which makes objects of it, then JSON, which TRL parses. The pieces are those of vLLM 0.31 and TRL
1.16; each is the least of many rounds, so another process beside it does not count. The sum is where
`server_logprob_s` of grpo_lab/predictor/speed.py starts from.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
from transformers import AutoTokenizer
from trl.generation.vllm_client import parse_logprobs
from vllm.entrypoints.openai.completion.serving import OpenAIServingCompletion
from vllm.logprobs import create_sample_logprobs
from vllm.v1.engine import EngineCoreOutput, EngineCoreOutputs
from vllm.v1.engine.logprobs import LogprobsProcessor
from vllm.v1.outputs import LogprobsLists
from vllm.v1.serial_utils import MsgpackDecoder, MsgpackEncoder

TINY = Path(__file__).resolve().parents[1] / "grpo_lab" / "assets" / "tiny"
TOKENS, ROUNDS = 256, 50


def microseconds(work: Callable[[], object]) -> float:
    """Of one of TOKENS tokens, in the fastest round."""
    seconds = []
    for _ in range(ROUNDS):
        start = time.process_time()
        work()
        seconds.append(time.process_time() - start)
    return min(seconds) / TOKENS * 1e6


def crossing(known: bool) -> float:
    """From the engine's process to the front end's, a token each of TOKENS sequences."""
    zeros = np.zeros((TOKENS, 1), np.int32)
    lists = LogprobsLists(zeros, zeros.astype(np.float32), zeros[:, 0])
    encoder, decoder = MsgpackEncoder(), MsgpackDecoder(EngineCoreOutputs)

    def cross() -> object:
        made = [
            EngineCoreOutput(f"cmpl-{i}-0", [i], new_logprobs=lists.slice_request(i, 1) if known else None)
            for i in range(TOKENS)
        ]
        return decoder.decode(encoder.encode(EngineCoreOutputs(outputs=made)))

    return microseconds(cross)


def main() -> None:
    tokenizer = AutoTokenizer.from_pretrained(TINY)
    ids = np.random.default_rng(0).integers(0, len(tokenizer), TOKENS).tolist()
    each = [LogprobsLists(np.array([[i]]), np.array([[-1.25]], np.float32), np.array([3])) for i in ids]

    def collect() -> LogprobsProcessor:
        of_a_request = LogprobsProcessor(tokenizer, create_sample_logprobs(False), None, 0.0, 0, None)
        for one in each:
            of_a_request._update_sample_logprobs(one)
        return of_a_request

    collected = collect().logprobs
    front = SimpleNamespace(_get_decoded_token=OpenAIServingCompletion._get_decoded_token)

    def answer() -> str:
        make = OpenAIServingCompletion._create_completion_logprobs
        return make(front, ids, collected, 0, tokenizer, return_as_token_id=True).model_dump_json()

    said = answer()
    pieces = {
        "engine to front end, beyond the token's own": crossing(True) - crossing(False),
        "objects in the front end": microseconds(collect),
        "JSON": microseconds(answer),
        "parsed by TRL": microseconds(lambda: parse_logprobs([json.loads(said)])),
    }
    for name, cost in pieces.items():
        print(f"{cost:6.1f} us  {name}")
    print(f"{sum(pieces.values()):6.1f} us  a token")


if __name__ == "__main__":
    main()
