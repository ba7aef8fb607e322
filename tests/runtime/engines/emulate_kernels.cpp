// Runs the runtime's CUDA kernels on the CPU: a std::thread for each thread of a block, a
// std::barrier for __syncthreads. KERNELS names the file with the CUDA source; the two PTX
// conversions in it are replaced by the compiler's _Float16 before it gets here.
#include <barrier>
#include <cmath>
#include <thread>
#include <vector>

struct Index { int x; };
static thread_local Index threadIdx;
static Index blockIdx{0}, blockDim{0}, gridDim{1};
static std::barrier<>* gate;

#define __device__
#define __global__
#define __forceinline__ inline
#define __shared__ static
#define __syncthreads() gate->arrive_and_wait()
#define __int_as_float(bits) __builtin_inff()

#include KERNELS

template <class Kernel, class From, class Last>
void run(Kernel kernel, const From* from, Last last, long long count, int blocks) {
  gridDim.x = blocks;
  blockDim.x = THREADS;
  for (blockIdx.x = 0; blockIdx.x < blocks; ++blockIdx.x) {
    std::barrier<> own(THREADS);
    gate = &own;
    std::vector<std::thread> threads;
    for (int t = 0; t < THREADS; ++t)
      threads.emplace_back([=] {
        threadIdx.x = t;
        kernel(from, last, count);
      });
    for (std::thread& thread : threads) thread.join();
  }
}

extern "C" void cast(const void* from, void* to, long long count, int to_half, int blocks) {
  if (to_half)
    run(geomag_cast_f32_f16, (const float*)from, (Half*)to, count, blocks);
  else
    run(geomag_cast_f16_f32, (const Half*)from, (float*)to, count, blocks);
}

extern "C" void argmax(const void* values, long long count, long long* token, int half) {
  if (half)
    run([](const Half* v, long long* t, long long n) { geomag_argmax_f16(v, n, t); },
        (const Half*)values, token, count, 1);
  else
    run([](const float* v, long long* t, long long n) { geomag_argmax_f32(v, n, t); },
        (const float*)values, token, count, 1);
}
