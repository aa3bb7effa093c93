"""A vLLM server without a model: it speaks what TRL and the harness speak, takes part in gloo weight transfers, answers
with random tokens, and at one request does what GRPO_LAB_TEST_FAULT says: `PATH NUMBER FAULT`, the NUMBER-th and all
later requests to PATH. FAULT: a status, `garbage`, `odd` (JSON of another kind), `stall`, `slow`, `cut` (half an
answer), `exit`, for /update_weights also `half` (an error after half of the tensors) and `halfexit`, and for
/v1/completions `halfabort` (what there is of completions when the engine goes down)."""

import argparse
import json
import os
import random
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

parser = argparse.ArgumentParser()
parser.add_argument("command")
parser.add_argument("model")
for option in ("host", "port", "served-model-name", "tensor-parallel-size", "data-parallel-size", "seed"):
    parser.add_argument(f"--{option}", default="0")
given, _ = parser.parse_known_args()
at, number, fault = os.environ.get("GRPO_LAB_TEST_FAULT", "nowhere 0 none").split()
counts: dict[str, int] = {}
wires: list = []
print("INFO 11-21 08:20:46 [model.py:1] The fake server serves", flush=True)

GET = {
    "/health": {},
    "/v1/models": {"data": [{"id": given.served_model_name, "root": given.model}]},
    "/get_world_size": {"world_size": 1},
    "/server_info": {
        "vllm_config": {
            "parallel_config": {"tensor_parallel_size": 1, "data_parallel_size": 1},
            "weight_transfer_config": {"backend": "gloo"},
            "model_config": {"logprobs_mode": "processed_logprobs", "max_logprobs": -1, "seed": int(given.seed)},
        }
    },
    "/version": {"version": "0.31.0"},
}


def init_weight_transfer_engine(init_info):
    from grpo_lab.server.gloo import Wire

    address, port = init_info["master_address"], init_info["master_port"]
    wires.append(Wire(address, port, rank=1, size=2, timeout_s=init_info["timeout_s"]))
    wires[-1].announce("connect")
    wires[-1].connect()
    return {}


def update_weights(update_info, fault=None):
    import torch

    wires[-1].announce(update_info["meeting"])
    tensors = list(zip(update_info["dtype_names"], update_info["shapes"], strict=True))
    for turn, (dtype, shape) in enumerate(tensors):
        if fault == "halfexit" and turn >= len(tensors) // 2:
            os._exit(1)
        wires[-1].receive(getattr(torch, dtype), shape)
    if fault == "half":
        raise RuntimeError("a weight has the wrong shape")
    return {}


def completions(prompt, n=1, max_tokens=8, fault=None, **_):
    prompts = prompt if isinstance(prompt[0], list) else [prompt]
    length, end = (2, "abort") if fault else (min(max_tokens, 8), "length")
    return {"choices": [choice(ids, length, end) for ids in prompts for _ in range(n)]}


def choice(prompt_ids, length, end):
    ids = [random.randrange(10, 20) for _ in range(length)]
    names = [f"token_id:{one}" for one in ids]
    logprobs = {"tokens": names, "token_logprobs": [-1.0] * length, "top_logprobs": [{name: -1.0} for name in names]}
    return {"prompt_token_ids": prompt_ids, "token_ids": ids, "logprobs": logprobs, "finish_reason": end}


POST = {
    "/init_weight_transfer_engine": init_weight_transfer_engine,
    "/start_weight_update": lambda: {},
    "/update_weights": update_weights,
    "/finish_weight_update": lambda: {},
    "/reset_prefix_cache": lambda: {},
    "/v1/completions": completions,
}


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        self.serve(lambda path, body, fault: GET[path])

    def do_POST(self):
        self.serve(lambda path, body, fault: POST[path](**body, **({"fault": fault} if fault else {})))

    def serve(self, work):
        path = self.path.partition("?")[0]
        body = json.loads(self.rfile.read(int(self.headers.get("Content-Length", 0))) or "{}")
        counts[path] = counts.get(path, 0) + 1
        struck = path == at and counts[path] >= int(number)
        if struck and self.strike(path):
            return
        try:
            self.answer(200, work(path, body, fault if struck and fault.startswith("half") else None))
        except (RuntimeError, LookupError, TypeError) as error:
            print(f"(EngineCore pid=7) ERROR 11-21 08:20:47 [core.py:9] {type(error).__name__}: {error}", flush=True)
            self.answer(500, {"error": f"{type(error).__name__}: {error}"})

    def strike(self, path):
        """Whether that was all."""
        print(f"ERROR 11-21 08:20:47 [api.py:1] FakeError: {path} does {fault}", flush=True)
        if fault.isdigit():
            self.answer(int(fault), {"error": "the fake server's fault"})
        elif fault == "garbage":
            self.wfile.write(b"SSH-2.0-OpenSSH_9.6\r\n")
            self.close_connection = True
        elif fault == "odd":
            self.answer(200, {"something": "else"})
        elif fault == "cut":
            self.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n{")
            self.close_connection = True
        elif fault == "stall":
            time.sleep(600)
        elif fault == "exit":
            os._exit(3)
        elif fault == "slow":
            time.sleep(1)
            return False
        return not fault.startswith("half")

    def answer(self, status, content):
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


sys.exit(ThreadingHTTPServer((given.host, int(given.port)), Handler).serve_forever())
