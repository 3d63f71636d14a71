#!/usr/bin/env bash
# tests/emulator/build.sh OUT [plain|asan|tsan|libraries]... [-- NAME...]
# tests/emulator/build.sh variants FILE: how a kernel file is compiled, a variant a line
#
# Builds what runs CUDA without a GPU; needs g++ 12 on x86-64.
#   libraries   OUT/lib/libcuda.so, libcublasLt.so, libnvrtc.so, libnccl.so: stand-ins, with all kernels in libcuda
#               and OUT/driver LIBRARIES, their test
#   plain, asan, tsan   OUT/plain/NAME...: the programs test_NAME.cpp beside this file; asan with
#               UndefinedBehaviorSanitizer
# Without a kind all of them, without a name all programs. What is newer than its sources stays. JOBS says how many
# compilers run at once (default: one per processor), FLAGS is added to those that compile kernels, as -DFAULT=3.
# ELEMS and SIZES say which variants of kernels libcuda gets (default: bf16 f16 f32, 64_64 128_128 192_128 256_256).
set -euo pipefail
elems=${ELEMS:-bf16 f16 f32}
sizes=${SIZES:-64_64 128_128 192_128 256_256}

# Flags of a kernel file, one variant a line: ELEM, and sizes of heads where names carry them.
variants() {
  local file=$1
  if grep -qE 'EXPORT\((SIZED|DIMS)_NAME' "$file"; then
    for elem in $elems; do
      [ $elem != f32 ] || continue
      for size in $sizes; do
        echo "-DELEM=$elem -DQK_DIM=${size%_*} -DV_DIM=${size#*_}"
      done
    done
  elif grep -q 'EXPORT(NAME(' "$file"; then
    for elem in $elems; do echo "-DELEM=$elem"; done
  else
    echo ""
  fi
}

if [ "$1" = variants ]; then
  variants "$2"
  exit
fi
out=$(mkdir -p "$1" && cd "$1" && pwd)
shift
kinds=()
while [ $# -gt 0 ] && [ "$1" != -- ]; do kinds+=("$1"); shift; done
[ ${#kinds[@]} -gt 0 ] || kinds=(libraries plain asan tsan)
[ $# -eq 0 ] || shift
names=("$@")
cd "$(dirname "$0")"
emulator=$PWD
kernels=$(cd ../../kernels && pwd)

common="-std=c++20 -march=x86-64-v3 -I$emulator -I$kernels -Wall -Wextra -Wno-unused-function -Wno-unused-parameter"
common+=" -Wno-unknown-pragmas -Wno-psabi"
flags=${FLAGS:-}
jobs=$(mktemp)
trap 'rm -f "$jobs"' EXIT

# outdated TARGET: its list of dependencies is missing, or something in it is newer, or the command has changed.
outdated() {
  local target=$1 command=$2 list file
  [ -f "$target" ] && [ -f "$target.d" ] && [ "$(cat "$target.command" 2>/dev/null)" = "$command" ] || return 0
  list=$(sed -e '1s/^[^:]*://' -e 's/\\$//' "$target.d" | tr ' ' '\n' | grep .) || return 0
  for file in $list; do
    [ -f "$file" ] && [ ! "$file" -nt "$target" ] || return 0
  done
  return 1
}
# compile TARGET SOURCE FLAGS...: queues it, if it is outdated.
compile() {
  local target=$1 source=$2
  shift 2
  local command="g++ $common $* -MMD -MF $target.d -c $source -o $target"
  outdated "$target" "$command" || return 0
  mkdir -p "$(dirname "$target")"
  rm -f "$target" "$target.command"
  # As old as the beginning of the compilation: sources may change meanwhile.
  local begin="touch $target.began" end="touch -r $target.began $target && echo '$command' > $target.command"
  echo "$begin && nice $command && $end" >> "$jobs"
}
run_jobs() {
  [ -s "$jobs" ] || return 0
  tr '\n' '\0' < "$jobs" | xargs -0 -P "${JOBS:-$(nproc)}" -I{} sh -c '{} || { echo "failed: {}" >&2; exit 255; }'
  : > "$jobs"
}
# link TARGET OBJECTS... -- FLAGS...
link() {
  local target=$1 objects=() newest=0 list=$out/objects/${1##*/}.list
  shift
  while [ "$1" != -- ]; do objects+=("$1"); shift; done
  shift
  [ ! -f "$target" ] && newest=1
  for object in "${objects[@]}"; do [ "$object" -nt "$target" ] && newest=1; done
  # The list of objects may have changed, when a kernel was removed.
  [ "$(cat "$list" 2>/dev/null)" = "${objects[*]}" ] || newest=1
  [ $newest = 0 ] || { nice g++ "${objects[@]}" "$@" -o "$target" && echo "${objects[*]}" > "$list"; }
}

build_libraries() {
  local objects=$out/objects/libraries lib=$out/lib units=$out/units shared="-fPIC -fvisibility=hidden -mtls-dialect=gnu2" of_cuda=()
  mkdir -p "$lib" "$units"
  for name in emu hopper; do
    [ -f $name.cpp ] || continue
    local fast=""
    [ $name = hopper ] && fast="-ffast-math -fno-finite-math-only"
    compile "$objects/$name.o" "$emulator/$name.cpp" "$shared -O3 $fast"
    of_cuda+=("$objects/$name.o")
  done
  for name in streams memory driver copies queues modules; do
    compile "$objects/$name.o" "$emulator/$name.cpp" "$shared -O2"
    of_cuda+=("$objects/$name.o")
  done
  for file in "$kernels"/*.cu; do
    while IFS= read -r variant; do
      local name
      name=$(basename "$file" .cu)$(sed -E 's/ ?-D[A-Z_]+=/_/g' <<< "$variant")
      # Everything of a variant has internal linkage: the same names mean other things in another one.
      local unit="#define CPU_EMU
#include \"emu.h\"
#if __has_include(\"hopper.h\")
#include \"hopper.h\"
#endif
#include \"exports.h\"
namespace {
#include \"$file\"
}"
      [ "$(cat "$units/$name.cpp" 2>/dev/null)" = "$unit" ] || echo "$unit" > "$units/$name.cpp"
      compile "$objects/$name.o" "$units/$name.cpp" "$shared -O2 $variant $flags"
      of_cuda+=("$objects/$name.o")
    done < <(variants "$file")
  done
  for name in cublaslt nvrtc nccl; do
    [ -f $name.cpp ] && compile "$objects/$name.o" "$emulator/$name.cpp" "$shared -O3"
  done
  run_jobs
  # By the names under which programs look for them; libraries that need libcuda find the one that lies beside them.
  local beside="-Wl,-rpath,\$ORIGIN -Wl,-z,defs"
  link "$lib/libcuda.so" "${of_cuda[@]}" -- -shared -Wl,-soname,libcuda.so.1 -Wl,-z,defs -pthread -ldl
  ln -sf libcuda.so "$lib/libcuda.so.1"
  link "$lib/libcublasLt.so" "$objects/cublaslt.o" "$lib/libcuda.so" -- -shared -Wl,-soname,libcublasLt.so.13 $beside
  ln -sf libcublasLt.so "$lib/libcublasLt.so.13"
  link "$lib/libnvrtc.so" "$objects/nvrtc.o" -- -shared -Wl,-soname,libnvrtc.so.13 -Wl,-z,defs
  ln -sf libnvrtc.so "$lib/libnvrtc.so.13"
  if [ -f "$objects/nccl.o" ]; then
    link "$lib/libnccl.so" "$objects/nccl.o" "$lib/libcuda.so" -- -shared -Wl,-soname,libnccl.so.2 $beside
    ln -sf libnccl.so "$lib/libnccl.so.2"
  fi
}

# Programs of one kind. The emulator tells ThreadSanitizer itself what happens, so only kernels are compiled with it.
build_programs() {
  local kind=$1 of_emulator of_kernels objects=$out/objects/$1 emulated=() wanted=()
  case $kind in
    plain) of_emulator="-O3" of_kernels="-O2" ;;
    asan) of_emulator="-O1 -g1 -fsanitize=address,undefined" of_kernels="-O1 -g1 -fsanitize=address,undefined" ;;
    tsan) of_emulator="-O3 -g1 -DEMU_TSAN" of_kernels="-O1 -g1 -DEMU_TSAN -fsanitize=thread" ;;
  esac
  mkdir -p "$out/$kind"
  for name in emu hopper; do
    [ -f $name.cpp ] || continue
    local fast=""
    [ $name = hopper ] && fast="-ffast-math -fno-finite-math-only"
    compile "$objects/$name.o" "$emulator/$name.cpp" "$of_emulator $fast"
    emulated+=("$objects/$name.o")
  done
  for source in test_*.cpp; do
    local name=${source#test_}
    name=${name%.cpp}
    [ "$name" = driver ] && continue
    [ ${#names[@]} -eq 0 ] || [[ " ${names[*]} " == *" $name "* ]] || continue
    wanted+=("$name")
    compile "$objects/test_$name.o" "$emulator/$source" "-DCPU_EMU= $of_kernels $flags"
  done
  run_jobs
  for name in "${wanted[@]}"; do
    link "$out/$kind/$name" "$objects/test_$name.o" "${emulated[@]}" -- $of_kernels -pthread
  done
}

for kind in "${kinds[@]}"; do
  case $kind in
    libraries)
      build_libraries
      compile "$out/objects/test_driver.o" "$emulator/test_driver.cpp" "-O1"
      run_jobs
      link "$out/driver" "$out/objects/test_driver.o" -- -ldl -pthread
      ;;
    plain | asan | tsan) build_programs "$kind" ;;
    *) echo "unknown: $kind" >&2; exit 2 ;;
  esac
done
