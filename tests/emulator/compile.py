"""compile.py FOLDER [FILE...]: compiles every variant of the kernels with the libnvrtc in FOLDER, for every architecture.

Fails on errors and warnings, on registers that spill, on a stack, and on remarks of ptxas that an asynchronous product
was changed (C75xx). Prints a line per file and `compiled K kernels in V variants`.
"""

import ctypes
import os
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

HERE = Path(__file__).resolve().parent
KERNELS = HERE.parent.parent / "kernels"


def load(folder):
    # NVRTC looks for its builtins in the library path, which is read when a process starts.
    paths = os.environ.get("LD_LIBRARY_PATH", "")
    if folder not in paths.split(":"):
        os.environ["LD_LIBRARY_PATH"] = f"{folder}:{paths}"
        os.execv(sys.executable, [sys.executable, *sys.argv])
    return ctypes.CDLL(str(sorted(Path(folder).glob("libnvrtc.so.*"))[0]))


def strings(values):
    return (ctypes.c_char_p * len(values))(*[value.encode() for value in values])


def compile_variant(nvrtc, file, architecture, defines):
    headers = sorted(KERNELS.glob("*.cuh"))
    program = ctypes.c_void_p()
    texts, names = strings([header.read_text() for header in headers]), strings([header.name for header in headers])
    source = (KERNELS / file).read_text().encode()
    assert nvrtc.nvrtcCreateProgram(ctypes.byref(program), source, file.encode(), len(headers), texts, names) == 0
    options = [f"--gpu-architecture={architecture}", "--std=c++17", "-default-device", "--ptxas-options=-v", *defines]
    failed = nvrtc.nvrtcCompileProgram(program, len(options), strings(options))
    size = ctypes.c_size_t()
    nvrtc.nvrtcGetProgramLogSize(program, ctypes.byref(size))
    log = ctypes.create_string_buffer(size.value)
    nvrtc.nvrtcGetProgramLog(program, log)
    nvrtc.nvrtcDestroyProgram(ctypes.byref(program))
    return failed, log.value.decode()


def faults(failed, log):
    found = ["does not compile"] if failed else []
    found += [line for line in log.splitlines() if "C75" in line or "error" in line or "warning" in line]
    found += [line for line in re.findall(r"[1-9]\d* bytes (?:stack frame|spill stores|spill loads)", log)]
    return found


def main():
    nvrtc = load(sys.argv[1])
    files = sys.argv[2:] or sorted(path.name for path in KERNELS.glob("*.cu"))
    jobs = []
    for file in files:
        architectures = ["sm_90a"] if file.endswith("_sm90.cu") else ["sm_80", "sm_90"]
        variants = subprocess.run([HERE / "build.sh", "variants", KERNELS / file], check=True, capture_output=True, text=True)
        for defines in variants.stdout.splitlines():
            jobs += [(file, architecture, defines.split()) for architecture in architectures]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        results = list(pool.map(lambda job: compile_variant(nvrtc, *job), jobs))
    kernels, registers, is_wrong = set(), {}, False
    for (file, architecture, defines), (failed, log) in zip(jobs, results):
        kernels |= set(re.findall(r"Compiling entry function '(\w+)'", log))
        used = [int(count) for count in re.findall(r"Used (\d+) registers", log)]
        registers[file] = max([*used, registers.get(file, 0)])
        for fault in faults(failed, log):
            is_wrong = True
            print(f"{file} {architecture} {' '.join(defines)}: {fault}")
        if failed:
            print(log)
    for file, most in registers.items():
        print(f"{file}: at most {most} registers")
    print(f"compiled {len(kernels)} kernels in {len(jobs)} variants")
    sys.exit(is_wrong)


main()
