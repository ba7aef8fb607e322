"""The few small kernels between graphs, in CUDA C++: a change of float type, the likeliest token.

float16 is converted by PTX, so that no header of CUDA's own is needed to compile them.
"""

from __future__ import annotations

from geomag_edge.cpp_ext.nvrtc import cubin

THREADS = 256

SOURCE = r"""
namespace {

struct Half { unsigned short bits; };

__device__ __forceinline__ float read(float value) { return value; }

__device__ __forceinline__ float read(Half value) {
  float wide;
  asm("cvt.f32.f16 %0, %1;" : "=f"(wide) : "h"(value.bits));
  return wide;
}

__device__ __forceinline__ void write(float* at, float value) { *at = value; }

__device__ __forceinline__ void write(Half* at, float value) {
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(at->bits) : "f"(value));
}

template <class From, class To>
__device__ __forceinline__ void cast(const From* from, To* to, long long count) {
  const long long step = (long long)gridDim.x * blockDim.x;
  for (long long i = (long long)blockIdx.x * blockDim.x + threadIdx.x; i < count; i += step)
    write(to + i, read(from[i]));
}

// The larger value wins, then the smaller index, as in numpy; NaN never wins.
__device__ __forceinline__ void keep_better(float& value, long long& index, float other,
                                            long long other_index) {
  if (other > value || (other == value && other_index < index)) {
    value = other;
    index = other_index;
  }
}

template <class From>
__device__ __forceinline__ void argmax(const From* values, long long count, long long* token) {
  __shared__ float best[THREADS];
  __shared__ long long where[THREADS];
  const int thread = threadIdx.x;
  float value = -INFINITY_F;
  long long index = count;
  for (long long i = thread; i < count; i += THREADS) keep_better(value, index, read(values[i]), i);
  best[thread] = value;
  where[thread] = index;
  for (int half = THREADS / 2; half > 0; half /= 2) {
    __syncthreads();
    if (thread < half)
      keep_better(best[thread], where[thread], best[thread + half], where[thread + half]);
  }
  if (thread == 0) *token = where[0] < count ? where[0] : 0;
}

}  // namespace

extern "C" __global__ void geomag_cast_f32_f16(const float* from, Half* to, long long count) {
  cast(from, to, count);
}

extern "C" __global__ void geomag_cast_f16_f32(const Half* from, float* to, long long count) {
  cast(from, to, count);
}

// One block of THREADS.
extern "C" __global__ void geomag_argmax_f32(const float* values, long long count,
                                             long long* token) {
  argmax(values, count, token);
}

extern "C" __global__ void geomag_argmax_f16(const Half* values, long long count,
                                             long long* token) {
  argmax(values, count, token);
}
"""

PREAMBLE = f"#define THREADS {THREADS}\n#define INFINITY_F __int_as_float(0x7f800000)\n"


def source() -> str:
    """The translation unit for NVRTC or nvcc."""
    return PREAMBLE + SOURCE


def compiled(architecture: int) -> bytes:
    """The kernels' machine code, compiled once and kept.

    Args:
        architecture: compute capability as a number, 87 for 8.7.

    Raises:
        MissingExtraError: NVRTC is not installed.
        KernelError: NVRTC refused the architecture.
    """
    return cubin("kernels.cu", source().encode(), {}, architecture)
