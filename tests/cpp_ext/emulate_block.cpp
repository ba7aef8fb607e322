// Runs the CUDA kernel's body on the CPU: a std::thread for each thread of a block, a std::barrier
// for __syncthreads, one block after another.
#include <barrier>
#include <thread>
#include <vector>

#include "psc_block.h"

namespace {

struct ThreadTeam {
  int index;
  psc::i64 x, y, z;
  std::barrier<>* gate;
  int thread() const { return index; }
  psc::i64 block_x() const { return x; }
  psc::i64 block_y() const { return y; }
  psc::i64 block_z() const { return z; }
  void barrier() const { gate->arrive_and_wait(); }
};

}  // namespace

extern "C" void emulate(const psc::u8* image, long long height, long long width, long long row,
                        long long pixel, long long channel, const float* boxes, long long n_boxes,
                        const float* mean_std, long long size, long long tile_columns, void* out,
                        int half) {
  const psc::Launch launch = {image, height,   width, row,          pixel, channel,
                              boxes, mean_std, size,  tile_columns, out};
  psc::Shared shared;
  std::barrier<> gate(psc::BLOCK_THREADS);
  std::vector<std::thread> threads;
  for (int t = 0; t < psc::BLOCK_THREADS; ++t) {
    threads.emplace_back([&, t] {
      for (psc::i64 z = 0; z < n_boxes; ++z) {
        for (psc::i64 y = 0; y * psc::TILE_ROWS < size; ++y) {
          for (psc::i64 x = 0; x * tile_columns < size; ++x) {
            const ThreadTeam team = {t, x, y, z, &gate};
            if (half) psc::crop_tile<ThreadTeam, psc::u16>(launch, team, shared);
            else psc::crop_tile<ThreadTeam, float>(launch, team, shared);
            gate.arrive_and_wait();  // the next block has its own shared memory
          }
        }
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
}
