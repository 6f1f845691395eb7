"""`python -m cuda_ops`: which backends of the normalized convolution are available here, and why not."""

import argparse
import os
import sys
from importlib import metadata


def main() -> int:
    print(f"torch {torch.__version__} (CUDA {torch.version.cuda}), Python {sys.version.split()[0]}")
    print("reference  available: any device")
    print("direct     available: any device")
    print(f"cuda       {_cuda()}")
    print(f"compiler   {_compiler()}")
    print(f"cache      {cache_folder() or 'none: no home folder'}")
    return 0


def _cuda() -> str:
    if torch.version.cuda is None:
        return "not available: this torch is built without CUDA"
    if not torch.cuda.is_available():
        return "not available: torch finds no NVIDIA GPU (driver missing, or no device)"
    lines = []
    for index in range(torch.cuda.device_count()):
        name, capability = torch.cuda.get_device_name(index), torch.cuda.get_device_capability(index)
        failure = build_failure("cuda", index, UNIT)
        try:
            state = failure or f"available ({architecture_for(capability)})"
        except BuildError as error:
            state = str(error)
        lines.append(f"{name}, compute capability {capability[0]}.{capability[1]}: {state}")
    return "\n           ".join(lines)


def _compiler() -> str:
    """Compiling needs no GPU, so it is tried here wherever NVRTC is."""
    try:
        version = nvrtc_version()
        compiled(UNIT.definitions(), "sm_90")
    except BuildError as error:
        return f"not available: {error}"
    return f"NVRTC {version} works (cuda-bindings {metadata.version('cuda-bindings')})"


if __name__ == "__main__":
    sys.exit(main())
