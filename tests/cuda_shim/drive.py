"""Run with the stand-in driver first on LD_LIBRARY_PATH: prints what the CUDA launcher hands to it."""

import ctypes
import json
import sys
from contextlib import nullcontext

import torch

from cuda_ops import cuda, nvrtc

fake = ctypes.CDLL(sys.argv[1])
torch.cuda.is_current_stream_capturing = lambda: False
torch.cuda.synchronize = lambda *_: sys.exit(
    "waits for the device: another thread's graph capture would break"
)
guarded: list[int] = []
torch.cuda.device = lambda index: guarded.append(index) or nullcontext()
torch.accelerator.current_device_index = lambda: 0
torch.cuda.get_device_capability = lambda _: (9, 0)
torch._C._cuda_getCurrentRawStream = lambda _: 1234

launcher = nvrtc.CudaLauncher(0, nvrtc.Unit(*[torch.float32] * 3, False))
arguments = nvrtc.Arguments(x=0xABCDEF)
go = launcher.bind(arguments)
out = (ctypes.c_uint64 * 9)()
seen = []
for failure in (0, 201, 400, 1):  # none, no context in this thread, another's, an invalid value
    fake.fake_fail(failure)
    try:
        go("scale", (5 + failure, 6), (32, 8))
        seen.append([fake.fake_launches(out), *out])
    except RuntimeError as error:
        seen.append(str(error))
# Another thread or another time: the stream is asked for anew, and the device where it is not the current one.
guarded.clear()
torch._C._cuda_getCurrentRawStream = lambda index: 77 + index
torch.accelerator.current_device_index = lambda: 1
launcher.bind(nvrtc.Arguments(x=5))("collect", (1, 2), (3, 4))
seen.append([fake.fake_launches(out), *out, *guarded])
# A graph is being captured in another thread, or the memory is full: refused now, not for ever.
unit = nvrtc.Unit(*[torch.float16] * 3, False)
for status in (900, 2, 0):
    fake.fake_refuse(status)
    try:
        cuda.build_failure("cuda", 0, unit)
        seen.append("built")
    except nvrtc.BuildError as error:
        seen.append(str(error))
print(json.dumps(seen))
