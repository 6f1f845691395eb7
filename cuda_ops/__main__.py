"""`python -m cuda_ops`: which backends of the normalized convolution are available here, and why not."""

import argparse
import os
import signal
import sys
from importlib import metadata


def main() -> None:
    import torch  # not at the top: --help answers at once

    from cuda_ops.nvrtc import cache_folder

    print(f"torch {torch.__version__} (CUDA {torch.version.cuda}), Python {sys.version.split()[0]}")
    print("reference  available: any device")
    print("direct     available: any device")
    print(f"cuda       {_cuda()}")
    print(f"compiler   {_compiler()}")
    print(f"cache      {cache_folder() or 'none: no home folder'}")


def _cuda() -> str:
    import torch

    from cuda_ops.cuda import build_failure
    from cuda_ops.nvrtc import FLOAT32, BuildError, architecture_for

    if torch.version.cuda is None:
        return "not available: this torch is built without CUDA"
    if not torch.cuda.is_available():
        return "not available: torch finds no NVIDIA GPU (driver missing, or no device)"
    lines = []
    for index in range(torch.cuda.device_count()):
        name, capability = torch.cuda.get_device_name(index), torch.cuda.get_device_capability(index)
        try:
            failure = build_failure("cuda", index, FLOAT32)
            state = failure or f"available ({architecture_for(capability)})"
        except BuildError as error:
            state = str(error)
        lines.append(f"{name}, compute capability {capability[0]}.{capability[1]}: {state}")
    return "\n           ".join(lines)


def _compiler() -> str:
    """Compiling needs no GPU, so it is tried here wherever NVRTC is."""
    from cuda_ops.nvrtc import FLOAT32, BuildError, compiled, nvrtc_version

    try:
        version = nvrtc_version()
        compiled(FLOAT32.definitions(), "sm_90")
    except BuildError as error:
        return f"not available: {error}"
    return f"NVRTC {version} works (cuda-bindings {metadata.version('cuda-bindings')})"


if __name__ == "__main__":
    description = "Show which backends of the normalized convolution are available here, and why not."
    argparse.ArgumentParser(prog="python -m cuda_ops", description=description).parse_args()
    try:
        main()
        sys.stdout.flush()
    except BrokenPipeError:  # the reader left; the interpreter would complain about the rest once more
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(128 + signal.SIGPIPE)
