"""With this folder on the PYTHONPATH, `python -m vllm.entrypoints.cli.main serve ...` is the fake server."""

import os
import sys

if "vllm.entrypoints.cli.main" in sys.orig_argv:
    fake = os.path.join(os.path.dirname(__file__), "fake_vllm.py")
    at = sys.orig_argv.index("vllm.entrypoints.cli.main")
    os.execv(sys.executable, [sys.executable, fake, *sys.orig_argv[at + 1 :]])
